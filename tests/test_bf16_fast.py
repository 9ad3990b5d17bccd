"""The table "bf16-fast": sums in the order of AVX512_BF16's instruction (docs/bfloat16.md), which is emulated here with
plain AVX-512, to its bits, so that any machine with that tests the table (csrc/kernels/amx/fast.inc).

Products are compared with NumPy's of that order. All else is the code of AMX's table, which has tests of its own: whole
passes are close to bf16's.
"""

import ctypes
import platform

import numpy as np
import pytest
import reference_bf16 as reference
import test_hidden
from checks import AVX512, compiled, normal, same_bits
from kernel_calls import Table, aligned, at, call, matrix, panels, rows
from packed import column_room, packed_panels, packed_rows, sums

import cvit
from cvit import Layout, ViT, ViTConfig
from cvit.engine import team
from cvit.engine.plan import Plan
from cvit.model.program import program_of


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    if platform.machine() not in ("x86_64", "AMD64") or "avx512" not in cvit.available_isas():
        pytest.skip("the table's other instructions are AVX-512's")
    flags = ["-fno-math-errno", "-fno-trapping-math", "-DCVIT_BF16_EMULATED", *AVX512]
    library = compiled(tmp_path_factory.mktemp("fast"), "csrc/isa/avx512_bf16fast.c", *flags)
    yield ctypes.addressof(ctypes.c_char.in_dll(library, "cvit_avx512_bf16fast"))
    assert library  # and its code stay until here


def product(a, b, bias=None, start=None):
    """bias + start + a (m, k) @ b (k, n), operands rounded: one chain over the pairs of the depth, each odd one first;
    zeros make the depth a multiple of 32."""
    more = (0, -len(b) % 32)
    a, b = reference.rounded(np.pad(a, ((0, 0), more))), reference.rounded(np.pad(b, (more, (0, 0))))
    zero = np.zeros((a.shape[0], b.shape[1]), np.float32)
    total = reference.add(zero if bias is None else zero + bias, zero if start is None else start)
    for p in range(0, len(b), 2):
        total = reference.fma(a[:, p + 1 : p + 2], b[p + 1], total)
        total = reference.fma(a[:, p : p + 1], b[p], total)
    return total


def wide_values(rng, *shape):
    """Normal values over many powers of two, a few of them zero or so small that their products are subnormal."""
    x = normal(rng, *shape, dtype=np.float32) * np.exp2(rng.integers(-12, 13, shape)).astype(np.float32)
    return np.where(rng.random(shape) < 0.05, x * np.float32(2.0**-70), x)


SIZES = [(1, 1, 1), (7, 9, 13), (8, 16, 32), (17, 33, 31), (33, 70, 384), (40, 15, 400), (35, 47, 1100)]


@pytest.mark.parametrize("half", [False, True], ids=["float", "half"])
@pytest.mark.parametrize("m, n, k", SIZES)
def test_a_product(address, rng, m, n, k, half):
    K = Table(address=address)
    x, w = wide_values(rng, m, k), wide_values(rng, k, n)
    bias, add = wide_values(rng, n), wide_values(rng, m, n + 5)
    for c, its_bias, its_add in sums(K, x, w, bias, add, half):
        exact = product(x, w, its_bias, None if its_add is None else its_add[:, :n])
        assert same_bits(c, reference.half_of(exact) if half else exact)


def test_a_product_that_goes_on(address, rng):
    """Depth in two parts, the second of which adds to c in place, is one product; it is not bf16's."""
    K, (m, n, k) = Table(address=address), (35, 50, 600)
    x, w = (normal(rng, *shape, dtype=np.float32) for shape in ((m, k), (k, n)))
    b, c = packed_panels(K, w), np.zeros((m, n), np.float32)
    for first, last in ((0, 320), (320, k)):
        a = packed_rows(K, x[:, first:last])
        g = call("gemm", m=m, n=n, k=last - first, a=rows(a, m), b=panels(b, k, first), c=matrix(c))
        if first:
            g.add = matrix(c)
        K.gemm(g)
    assert same_bits(c, product(x, w)) and not same_bits(c, reference.product(x, w))


@pytest.mark.parametrize("m, n, k", [(1, 1, 1), (9, 20, 33), (40, 33, 900)])
def test_a_weight_gradient(address, rng, m, n, k):
    K = Table(address=address)
    x, dy = wide_values(rng, k, m), wide_values(rng, k, n)
    a, c, sums = column_room(K, k, m), np.zeros((m, n), np.float32), np.zeros(n, np.float32)
    K.pack_columns(call("pack_columns", k=k, m=m, x=matrix(x), a=at(a)))
    b = packed_panels(K, dy)
    g = call("gemm_columns", m=m, n=n, k=k, a=at(a), b=panels(b, k), c=matrix(c), column_sums=at(sums))
    exact = exact_sums = None
    for g.accumulate in (0, 1):
        K.gemm_columns(g)
        exact, exact_sums = product(x.T, dy, start=exact), reference.column_sums(dy, exact_sums)
        assert same_bits(c, exact) and same_bits(sums, exact_sums)


@pytest.mark.parametrize("tokens, dh", [(1, 1), (17, 24), (65, 64), (420, 40)])
def test_attention(address, rng, tokens, dh):
    """Forward and backward, close to bf16's."""
    cvit.set_isa("avx512")
    qkv, d_o = (normal(rng, tokens, width, dtype=np.float32) for width in (3 * dh, dh))
    q, k, v = (matrix(qkv[:, i * dh : (i + 1) * dh]) for i in range(3))
    found = []
    for K in (Table(address=team.table_address(precision="bf16")), Table(address=address)):
        (o, dq, dk, dv), lse = np.zeros((4, tokens, dh), np.float32), np.zeros(tokens, np.float32)
        members = dict(first=0, count=tokens, tokens=tokens, dh=dh, q=q, k=k, v=v, o=matrix(o), lse=at(lse))
        scratch = [aligned(K.attention_scratch(tokens, dh, backward), np.float32) for backward in (0, 1)]
        K.attention(call("attention", scratch=at(scratch[0]), **members))
        members |= dict(d_o=matrix(d_o), dq=matrix(dq), dk=matrix(dk), dv=matrix(dv), scratch=at(scratch[1]))
        K.attention_backward(call("attention_backward", **members))
        found.append((o, lse, dq, dk, dv))
    for plain, fast in zip(*found, strict=True):
        assert np.linalg.norm(fast - plain) <= 2e-3 * np.linalg.norm(plain) + 1e-6


@pytest.mark.parametrize(
    "options",
    [
        dict(image_size=20, patch_size=2, pool="mean", layer_scale=0.3),
        dict(image_size=8, patch_size=2, gated=True, activation="silu", hidden=400, registers=2),
        dict(image_size=24, patch_size=2, width=70, heads=7, hidden=33),
    ],
    ids=["layer scale", "gated", "odd sizes"],
)
def test_whole_passes(address, rng, options):
    """Close to bf16, the same bits with one thread and with three, and not bf16's."""
    config = ViTConfig(**{**dict(channels=2, width=48, depth=2, heads=3, hidden=80, classes=5), **options})
    weights = normal(rng, Layout.of(config).size, dtype=np.float32) * np.float32(0.2)
    x, y = normal(rng, 5, 2, *config.image_size, dtype=np.float32), np.arange(5)
    cvit.set_isa("avx512")
    found = []
    for kernels, threads in ((0, 1), (address, 1), (address, 3)):
        cvit.set_num_threads(threads)
        grad = np.empty_like(weights)
        plan = Plan(program_of(config), 5, np.float32, "train", precision="bf16", kernels=kernels)
        loss = plan.run_training(weights, x, y, 0.1, grad)
        infer = Plan(program_of(config), 5, np.float32, "infer", precision="bf16", kernels=kernels)
        found.append((np.array([loss]), grad, plan.logits().copy(), infer.forward(weights, x)[0].copy()))
    plain, fast, threaded = found
    assert same_bits(fast, threaded) and not same_bits(fast[1], plain[1])
    for a, b in zip(plain, fast, strict=True):
        assert np.linalg.norm(b - a) <= 1e-2 * np.linalg.norm(a)


@pytest.mark.parametrize("half", [False, True], ids=["float", "half"])
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("size", test_hidden.SIZES)
def test_hidden_rows(address, rng, size, gated, half):
    test_hidden.check(Table(address=address), rng, size, gated, half)


def test_its_peak_is_the_instructions(address):
    K = Table(address=address)
    assert (K.isa, K.element, K.peak) == (b"avx512", b"bf16-fast", b"vdpbf16ps")
    assert K.probe_flops(3) == 3 * 2 * K.probe_flops(1) / 2 > 0


def test_it_is_never_silent():
    """Offered where the CPU says that it has the instruction, and otherwise one error, also of a plainer table."""
    config = ViTConfig(image_size=8, patch_size=4, channels=1, width=16, depth=1, heads=2, hidden=16, classes=3)
    assert ViT(config, precision="auto").precision != "bf16-fast"
    cvit.set_isa("portable")
    assert not team.has_precision("bf16-fast")
    with pytest.raises(ValueError, match="precision 'bf16-fast' needs a CPU with AVX512-BF16"):
        ViT(config, precision="bf16-fast")
    cvit.set_isa(cvit.available_isas()[-1])
    if team.has_precision("bf16-fast"):
        assert ViT(config, precision="bf16-fast").precision == "bf16-fast"
    else:
        with pytest.raises(ValueError, match="precision 'bf16-fast' needs a CPU with AVX512-BF16"):
            ViT(config, precision="bf16-fast")
