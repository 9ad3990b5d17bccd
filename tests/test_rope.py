"""cvit.model.rope: angles against the papers' formulas written out and against timm, and the order of the pairs."""

import numpy as np
import pytest
import reference as ref
from checks import peer

from cvit.model.rope import Rope, angles, coordinates, pairs_first

GRIDS = [(1, 1), (2, 3), (5, 1), (4, 4)]


@pytest.fixture
def embeddings():
    """timm's rotary embeddings."""
    return peer("timm.layers.pos_embed_sincos")


# ---------------------------------------------------------------------------------------------------- written out
@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("rope", [Rope(), Rope(theta=100.0, offset=1.0), Rope(offset=0.5, reference=(7, 16))])
def test_axial_angles(rope, grid):
    """Pair j < dh / 4 turns by the row's index times theta^(-j / (dh / 4)), the other half by the column's."""
    expected = np.zeros((grid[0] * grid[1], 6))
    reference = rope.reference or grid
    for row in range(grid[0]):
        for column in range(grid[1]):
            for j in range(3):
                frequency = rope.theta ** (-j / 3)
                at = expected[row * grid[1] + column]
                at[j] = (row + rope.offset) * reference[0] / grid[0] * frequency
                at[3 + j] = (column + rope.offset) * reference[1] / grid[1] * frequency
    np.testing.assert_allclose(angles(rope, grid, 12), expected, rtol=1e-14)
    other = Rope(rope.kind, rope.theta, rope.offset, rope.reference, columns_first=True)
    np.testing.assert_allclose(angles(other, grid, 12), np.roll(expected, 3, axis=1), rtol=1e-14)


@pytest.mark.parametrize("grid", GRIDS)
def test_centred_angles(grid):
    """The middle of the first patch stands half a patch behind -1, that of the last one half a patch before 1."""
    places = coordinates(Rope("centred"), grid)
    np.testing.assert_allclose(places[0], [-1 + 1 / grid[0], -1 + 1 / grid[1]], atol=1e-15)
    np.testing.assert_allclose(places[-1], [1 - 1 / grid[0], 1 - 1 / grid[1]], atol=1e-15)
    expected = [[2 * np.pi * place * 100.0 ** (-j / 2) for place in pair for j in range(2)] for pair in places]
    np.testing.assert_allclose(angles(Rope("centred", theta=100.0), grid, 8), expected, rtol=1e-14, atol=1e-15)


def test_a_reference_grid_stretches_indices():
    """A grid twice as fine sees every second position of the coarse one."""
    coarse = angles(Rope(), (2, 3), 8).reshape(2, 3, 4)
    fine = angles(Rope(reference=(2, 3)), (4, 6), 8).reshape(4, 6, 4)
    np.testing.assert_allclose(fine[::2, ::2], coarse, rtol=1e-14)


def test_only_mixed_positions_are_learned():
    assert [Rope(kind).learned for kind in ("axial", "centred", "mixed")] == [False, False, True]


# ---------------------------------------------------------------------------------------------------- against timm
def cos_sin(embed, half):
    """cos and sin (patches, dh / 2) of timm's [sin, cos], of which each number stands there twice."""
    sin, cos = np.split(embed.detach().double().numpy(), 2, axis=-1)
    width = sin.shape[-1]
    pick = np.arange(width // 2) if half else np.arange(0, width, 2)
    other = pick + (width // 2 if half else 1)
    np.testing.assert_array_equal(sin[..., pick], sin[..., other])
    return cos[..., pick], sin[..., pick]


def assert_turns(angle, embed, half):
    """timm computes in float32, where an angle of size a is off by a few a · 2^-24."""
    cos, sin = cos_sin(embed, half)
    bound = 1e-6 * max(1.0, np.abs(angle).max())
    np.testing.assert_allclose(np.cos(angle), cos, atol=bound)
    np.testing.assert_allclose(np.sin(angle), sin, atol=bound)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("columns_first", [False, True])
@pytest.mark.parametrize("offset, reference", [(0.0, None), (1.0, None), (0.0, (16, 16)), (0.5, (3, 7))])
def test_axial_angles_are_timm_s(embeddings, grid, columns_first, offset, reference):
    """EVA-02's and PE's."""
    theirs = embeddings.RotaryEmbeddingCat(
        16, in_pixels=False, temperature=1000.0, feat_shape=list(grid), grid_offset=offset,
        ref_feat_shape=reference and list(reference), grid_indexing="xy" if columns_first else "ij",
    )  # fmt: skip
    rope = Rope(theta=1000.0, offset=offset, reference=reference, columns_first=columns_first)
    assert_turns(angles(rope, grid, 16), theirs.get_embed(), half=False)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("columns_first", [False, True])
@pytest.mark.parametrize("offset", [0.0, 0.25])
def test_centred_angles_are_timm_s(embeddings, grid, columns_first, offset):
    """DINOv3's, whose pairs lie half a head apart there, too."""
    theirs = embeddings.RotaryEmbeddingDinoV3(
        16, temperature=100.0, feat_shape=list(grid), grid_offset=offset, grid_indexing="xy" if columns_first else "ij"
    )
    rope = Rope("centred", theta=100.0, offset=offset, columns_first=columns_first)
    assert_turns(angles(rope, grid, 16), theirs.get_embed(), half=True)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("columns_first", [False, True])
def test_mixed_angles_are_timm_s(embeddings, grid, columns_first):
    """RoPE-ViT's: coordinates @ frequencies."""
    theirs = embeddings.RotaryEmbeddingMixed(
        24, depth=2, num_heads=3, feat_shape=list(grid), grid_indexing="xy" if columns_first else "ij"
    )
    frequencies = theirs.freqs.detach().double().numpy()
    places = coordinates(Rope("mixed", columns_first=columns_first), grid)
    embed = theirs.get_embed()
    for block in range(2):
        angle = np.einsum("pa,ahj->hpj", places, frequencies[:, block])
        assert_turns(angle, embed[block], half=False)


# --------------------------------------------------------------------------------------------------- the order of pairs
def turn_neighbours(x, angle):
    """Pairs (0, 1), (2, 3), … of x (T, dh), as the paper and timm turn them."""
    y = np.empty_like(x)
    y[:, ::2] = x[:, ::2] * np.cos(angle) - x[:, 1::2] * np.sin(angle)
    y[:, 1::2] = x[:, 1::2] * np.cos(angle) + x[:, ::2] * np.sin(angle)
    return y


@pytest.mark.parametrize("heads, head_width", [(1, 4), (3, 8), (2, 12)])
def test_turning_neighbours_is_turning_halves_of_reordered_channels(heads, head_width):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((6, heads * head_width))
    angle = angles(Rope(theta=10.0, offset=0.3), (2, 3), head_width)
    order = pairs_first(heads, head_width)
    assert sorted(order) == list(range(heads * head_width))
    assert all(np.sort(order[h * head_width :][:head_width])[0] == h * head_width for h in range(heads))
    theirs = np.concatenate([turn_neighbours(head, angle) for head in np.split(x, heads, axis=1)], axis=1)
    ours = ref.rotate_forward(ref.split_heads(x[None][..., order], heads), angle)
    np.testing.assert_allclose(ref.merge_heads(ours)[0], theirs[:, order], rtol=1e-14)


def test_scores_do_not_notice_the_order_and_depend_on_differences_alone():
    rng = np.random.default_rng(1)
    q, k = rng.standard_normal((2, 6, 8))
    angle, order = angles(Rope(), (2, 3), 8), pairs_first(1, 8)
    turned = turn_neighbours(q, angle) @ turn_neighbours(k, angle).T
    halves = [ref.rotate_forward(x[None, None][..., order], angle)[0, 0] for x in (q, k)]
    np.testing.assert_allclose(halves[0] @ halves[1].T, turned, rtol=1e-12)
    moved = angles(Rope(offset=5.0), (2, 3), 8)
    np.testing.assert_allclose(turn_neighbours(q, moved) @ turn_neighbours(k, moved).T, turned, rtol=1e-12)
