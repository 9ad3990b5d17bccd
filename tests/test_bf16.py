"""The table of tests/bf16/table.c, whose packed operands are bfloat16, kernel by kernel.

Operands are rounded to bfloat16, all else is float: products of rounded operands in float64 are what the kernels must
give but for float32 rounding.
"""

import numpy as np
import pytest
from checks import assert_rounded, normal, same_bits, wide
from kernel_calls import STRUCTS, Table, aligned, at, matrix, panels, rows

import cvit
from cvit import Layout, ViTConfig
from cvit.engine.plan import Plan
from cvit.model.program import program_of


@pytest.fixture
def K(bf16_table):
    return Table(np.float32, bf16_table)


def call(name, **members):
    return STRUCTS[f"cvit_{name}"](**members)


def to_bf16(x):
    """The upper half of each float32, rounded to nearest even, as float32 again."""
    bits = x.astype(np.float32).view(np.uint32).astype(np.uint64)
    rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16 << 16
    return rounded.astype(np.uint32).view(np.float32)


def widened(packed):
    return (packed.astype(np.uint32) << 16).view(np.float32)


def packed(count):
    return aligned(count, np.uint16, 0xFFFF)


def unpacked_rows(K, a, m, k):
    blocks = [a[p * m : (p + K.lda) * m].reshape(m, K.lda)[:, : K.kc] for p in range(0, -(-k // K.kc) * K.lda, K.lda)]
    return widened(np.concatenate(blocks, axis=1)[:, :k].copy())


def test_what_it_says_of_itself(K):
    assert (K.isa, K.element, K.size, K.packed_size) == (b"portable", b"bf16", 4, 2)


def test_rounding_to_nearest_even(K):
    """Halfway between two bfloat16 numbers the one whose last bit is zero is taken; NaN and infinities stay."""
    step = 2.0**-7  # between neighbours from 1 to 2
    x = np.array([[1 + step / 2, 1 + 1.5 * step, 1 + 0.51 * step, -1 - 2.5 * step, 3.4e38, np.inf, np.nan]], np.float32)
    a = packed(K.lda)
    K.pack_rows(call("pack_rows", rows=1, k=7, x=matrix(x), scale=1.0, a=rows(a, 1)))
    found = unpacked_rows(K, a, 1, 7)
    assert found[0, :6].tolist() == [1, 1 + 2 * step, 1 + step, -1 - 2 * step, np.inf, np.inf] and np.isnan(found[0, 6])


@pytest.mark.parametrize("m, n, k", [(1, 1, 1), (7, 9, 13), (20, 40, 300), (13, 130, 600)])
def test_a_product(K, rng, m, n, k):
    """Of packed rows and panels at some row of deeper ones, with bias and addend."""
    depth, row = k + 4, 3
    x, w, bias, add = (normal(rng, *shape, dtype=np.float32) for shape in ((m, k), (k, n), (n,), (m, n)))
    a, b, c = packed(m * K.lda * -(-k // K.kc)), packed(K.panels_size(depth, n)), np.zeros((m, n), np.float32)
    K.pack_rows(call("pack_rows", rows=m, k=k, x=matrix(x), scale=0.5, a=rows(a, m)))
    K.pack_panels(call("pack_panels", k=k, n=n, x=matrix(w), b=panels(b, depth, row)))
    assert same_bits(unpacked_rows(K, a, m, k), to_bf16(x * np.float32(0.5)))
    g = call("gemm", m=m, n=n, k=k, a=rows(a, m), b=panels(b, depth, row), c=matrix(c), bias=at(bias), add=matrix(add))
    K.gemm(g)
    x, w, bias, add = wide(to_bf16(x * np.float32(0.5)), to_bf16(w), bias, add)
    assert_rounded(c, x @ w + bias + add, np.abs(x) @ np.abs(w) + np.abs(bias) + np.abs(add), k + 2)


@pytest.mark.parametrize("m, n, k", [(1, 1, 1), (7, 9, 13), (20, 40, 300)])
def test_a_weight_gradient(K, rng, m, n, k):
    """Normalised columns times transposed panels with a factor, set and then accumulated, with the column sums."""
    x, dyt, factor = normal(rng, k, m, dtype=np.float32), normal(rng, n, k, dtype=np.float32), normal(rng, k)
    mean, rstd, scale, shift = (normal(rng, count, dtype=np.float32) for count in (k, k, m, m))
    factor = factor.astype(np.float32)
    a, b = packed(k * 32 * (m + 32)), packed(K.panels_size(k, n))
    c, sums = np.zeros((m, n), np.float32), np.zeros(n, np.float32)
    norm = dict(mean=at(mean), rstd=at(rstd), scale=at(scale), shift=at(shift))
    K.pack_columns(call("pack_columns", k=k, m=m, x=matrix(x), a=at(a), **norm))
    K.pack_panels_transposed(call("pack_panels", k=k, n=n, x=matrix(dyt), factor=at(factor), b=panels(b, k)))
    for accumulate in (0, 1):
        K.gemm_columns(
            call(
                "gemm_columns", m=m, n=n, k=k, a=at(a), b=panels(b, k), c=matrix(c), accumulate=accumulate,
                column_sums=at(sums),
            )
        )  # fmt: skip
    x = to_bf16((x - mean[:, None]) * rstd[:, None] * scale + shift)
    x, dy = wide(x, to_bf16(dyt * factor).T)
    # the normalised values may be rounded to the other neighbour where a multiply-add is fused: an eighth of a bit of 8
    size = 2 * np.abs(x.T) @ np.abs(dy)
    assert np.abs(c - 2 * x.T @ dy).max() <= 2**-8 * size.max()
    assert_rounded(sums, 2 * dy.sum(0), 2 * np.abs(dy).sum(0), 2 * k + 2)


@pytest.mark.parametrize("m, k", [(1, 1), (9, 33), (5, 600)])
def test_both_forms(K, rng, m, k):
    x, depth, row = normal(rng, m, k, dtype=np.float32), m + 3, 2
    a, b = packed(m * K.lda * -(-k // K.kc)), packed(K.panels_size(depth, k))
    K.pack_both(call("pack_rows", rows=m, k=k, x=matrix(x), scale=1.0, a=rows(a, m), b=panels(b, depth, row)))
    assert same_bits(unpacked_rows(K, a, m, k), to_bf16(x))
    c = np.zeros((m, k), np.float32)  # the identity times the panels
    one = packed(m * K.lda * -(-m // K.kc))
    K.pack_rows(call("pack_rows", rows=m, k=m, x=matrix(eye := np.eye(m, dtype=np.float32)), scale=1.0, a=rows(one, m)))
    K.gemm(call("gemm", m=m, n=k, k=m, a=rows(one, m), b=panels(b, depth, row), c=matrix(c)))
    assert same_bits(c, to_bf16(x)) and eye.shape == (m, m)


@pytest.mark.parametrize("m, d", [(1, 5), (9, 300)])
def test_a_norm(K, rng, m, d):
    x, scale, shift = normal(rng, m, d, dtype=np.float32), *normal(rng, 2, d, dtype=np.float32)
    y, stats, a = np.zeros_like(x), np.zeros((4, m), np.float32), packed(m * K.lda * -(-d // K.kc))
    members = dict(rows=m, d=d, x=matrix(x), scale=at(scale), shift=at(shift), eps=1e-6)
    K.norm(call("norm", **members, y=matrix(y), mean=at(stats[0]), rstd=at(stats[1])))
    K.norm(call("norm", **members, a=rows(a, m), mean=at(stats[2]), rstd=at(stats[3])))
    assert same_bits(unpacked_rows(K, a, m, d), to_bf16(y)) and same_bits(stats[:2], stats[2:])


@pytest.mark.parametrize("gated", [False, True])
def test_an_activation_and_its_backward(K, rng, gated):
    """Packed rows may begin where x, and dy, do."""
    m, n, depth, row = 6, 40, 11, 2
    x, dy, value = normal(rng, 3, m, K.lda, dtype=np.float32)
    members = dict(kind=3, rows=m, n=n, value=matrix(value if gated else None))
    y, inside = np.zeros((m, n), np.float32), x.copy()
    K.activation(call("activation", **members, x=matrix(x), y=matrix(y)))
    K.activation(call("activation", **members, x=matrix(inside), a=rows(inside, m)))
    assert same_bits(unpacked_rows(K, inside.view(np.uint16).ravel(), m, n), to_bf16(y))

    plain = [x.copy(), dy.copy(), np.zeros((m, n), np.float32)]
    K.activation_backward(
        call("activation_backward", **members, x=matrix(plain[0]), dy=matrix(plain[1]), dvalue=matrix(plain[2]))
    )
    a_value, (b, b_value) = packed(m * K.lda), (packed(K.panels_size(depth, n)) for _ in range(2))
    backward = call(
        "activation_backward", **members, x=matrix(x), dy=matrix(dy), a=rows(dy, m), b=panels(b, depth, row)
    )
    if gated:
        backward.a_value, backward.b_value = rows(a_value, m), panels(b_value, depth, row)
    K.activation_backward(backward)
    assert same_bits(x, plain[0])
    found = [(dy.view(np.uint16).ravel(), b, plain[1])] + [(a_value, b_value, plain[2])] * gated
    for a, panel, expected in found:
        assert same_bits(unpacked_rows(K, a, m, n), to_bf16(expected[:, :n]))
        columns = np.concatenate(
            [panel[j * depth : (j + K.nr) * depth].reshape(depth, K.nr) for j in range(0, n, K.nr)], 1
        )
        assert same_bits(widened(columns[row : row + m, :n].copy()), to_bf16(expected[:, :n]))
        assert (columns[:row] == 0xFFFF).all() and (columns[row + m :] == 0xFFFF).all()


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize(
    "options",
    [
        dict(image_size=8, patch_size=2),
        dict(image_size=20, patch_size=2, pool="mean", layer_scale=0.3),
        dict(image_size=8, patch_size=2, gated=True, activation="silu", hidden=400, registers=2),
    ],
    ids=["plain", "layer scale", "gated"],
)
def test_a_whole_pass_goes_through_the_stages_that_know_no_element_type(bf16_table, rng, options, threads):
    """The third table in the place of float32's: gradients are off by what bfloat16 operands explain."""
    config = ViTConfig(**{**dict(channels=2, width=24, depth=2, heads=3, hidden=40, classes=5), **options})
    weights = normal(rng, Layout.of(config).size, dtype=np.float32) * np.float32(0.2)
    x, y = normal(rng, 5, 2, *config.image_size, dtype=np.float32), np.arange(5)
    cvit.set_num_threads(threads)
    found = {}
    for name, kernels in (("f32", 0), ("bf16", bf16_table)):
        grad = np.empty_like(weights)
        plan = Plan(program_of(config), 5, np.float32, "train", kernels=kernels)
        loss = plan.run_training(weights, x, y, 0.1, grad)
        logits, _ = Plan(program_of(config), 5, np.float32, "infer", kernels=kernels).forward(weights, x)
        found[name] = (np.float64(loss), grad, logits.copy())
    for exact, rough in zip(found["f32"], found["bf16"]):
        error = np.linalg.norm(rough - exact) / np.linalg.norm(exact)
        assert 1e-6 < error < 0.02
