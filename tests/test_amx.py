"""AMX's table on any machine with AVX-512, in two ways: compiled with emulated tiles (csrc/kernels/amx/tiles.h), and as
it was built, its instructions trapped and emulated where there are none (tests/bf16/trapped.c).

Every kernel that is not shared must give the bits of the AVX-512 table of bfloat16, and so must whole passes. How
operands are packed is each table's own affair (tests/packed.py).
"""

import ctypes
import platform

import numpy as np
import pytest
import test_hidden
from checks import AVX512, compiled, normal, same_bits
from kernel_calls import Table, aligned, at, bf16_table, call, matrix, panels, rows
from packed import (
    packed_columns,
    packed_panels,
    packed_rows,
    panel_room,
    round_up,
    row_room,
    sums,
    unpacked_panels,
    unpacked_rows,
)
from reference_bf16 import half_of
from test_bf16_machines import KERNELS, lines_of, of_each_kernel, recorded

import cvit
from cvit import Layout, ViTConfig
from cvit.engine import team
from cvit.engine.plan import Plan
from cvit.model.program import program_of


@pytest.fixture(scope="module", params=["emulated", "as built"])
def amx(request, tmp_path_factory):
    """AMX's table, as (address, a function that gives how often tiles were configured and released)."""
    if platform.machine() not in ("x86_64", "AMD64") or "avx512" not in cvit.available_isas():
        pytest.skip("the table's other instructions are AVX-512's")
    folder = tmp_path_factory.mktemp("amx")
    if request.param == "emulated":
        flags = ["-fno-math-errno", "-fno-trapping-math", "-DCVIT_AMX_EMULATED", *AVX512]
        library = compiled(folder, "csrc/isa/amx_bf16.c", *flags)
        address = ctypes.addressof(ctypes.c_char.in_dll(library, "cvit_amx_bf16"))
        yield address, lambda: numbers(library, "cvit_emulated_configured", "cvit_emulated_released")
        assert library.cvit_emulated_tiles() == 0
        return
    if "amx" not in team.isa_names(supported_only=False) or platform.system() != "Linux":
        pytest.skip("built without AMX's table, or no Linux")
    library = compiled(folder, "tests/bf16/trapped.c", "-mfma")
    if not library.trap_tiles():
        pytest.skip("the CPU lacks AVX512_BF16, which AMX's table needs besides")
    yield team.table_address(precision="bf16", isa="amx"), lambda: numbers(library, "configured", "released")
    library.untrap_tiles()
    assert "amx" in cvit.available_isas() or numbers(library, "trapped")[0] > 10000


def numbers(library, *names):
    return [ctypes.c_int.in_dll(library, name).value for name in names]


@pytest.fixture
def tables(amx):
    """(AVX-512's table, AMX's), whose tiles this thread may use."""
    cvit.set_isa("avx512")
    pair = bf16_table(), Table(address=amx[0])
    pair[1].enter()
    yield pair
    pair[1].leave()


def scratch_rows(K, x):
    """x in rows of lda floats, with room for as many packed ones."""
    m, n = x.shape
    y = aligned(round_up(m, 32) * K.lda, np.float32, 0)[: m * K.lda].reshape(m, K.lda)
    y[:, :n] = x
    return y


def both(tables, function):
    """The function's arrays with either table: the same bits."""
    plain, found = (function(K) for K in tables)
    assert same_bits(plain, found)
    return found


# ------------------------------------------------------------------------------------------------------------ products
SIZES = [(1, 1, 1), (7, 9, 13), (16, 16, 32), (17, 33, 31), (33, 70, 384), (40, 47, 400), (65, 130, 1100)]


@pytest.mark.parametrize("half", [False, True], ids=["float", "half"])
@pytest.mark.parametrize("m, n, k", SIZES)
def test_a_product(tables, rng, m, n, k, half):
    """With a bias, an addend, both or neither; of packed rows that are scaled and may come from bfloat16."""
    x, w = (normal(rng, *shape, dtype=np.float32) for shape in ((m, k), (k, n)))
    bias, add = normal(rng, n, dtype=np.float32), normal(rng, m, n + 5, dtype=np.float32)

    found = both(tables, lambda K: [c for c, _, _ in sums(K, x, w, bias, add, half, 0.7)])
    exact = (x * np.float32(0.7)).astype(np.float64) @ w
    if not half:
        assert np.linalg.norm(found[0] - exact) <= 0.02 * np.linalg.norm(exact)


def test_a_product_that_goes_on(tables, rng):
    """Depth in two parts, the second of which adds to c in place, is one product."""
    m, n, k = 35, 50, 600
    x, w = (normal(rng, *shape, dtype=np.float32) for shape in ((m, k), (k, n)))

    def run(K):
        whole, c = np.zeros((2, m, n), np.float32)
        a, b = packed_rows(K, x), packed_panels(K, w)
        K.gemm(call("gemm", m=m, n=n, k=k, a=rows(a, m), b=panels(b, k), c=matrix(whole)))
        for first, last in ((0, 320), (320, k)):
            a = packed_rows(K, x[:, first:last])
            g = call("gemm", m=m, n=n, k=last - first, a=rows(a, m), b=panels(b, k, first), c=matrix(c))
            if first:
                g.add = matrix(c)
            K.gemm(g)
        assert same_bits(whole, c)
        return c

    both(tables, run)


@pytest.mark.parametrize("half", [False, True], ids=["float", "half"])
@pytest.mark.parametrize("m, n, k", [(1, 1, 1), (9, 20, 33), (32, 32, 64), (50, 70, 447), (40, 33, 900)])
def test_a_weight_gradient(tables, rng, m, n, k, half):
    """Set and accumulated, with the column sums; x as it is, or normalised with or without shift and scale."""
    x, dy = (normal(rng, *shape, dtype=np.float32) for shape in ((k, m), (k, n)))
    mean, rstd, scale, shift = (normal(rng, count, dtype=np.float32) for count in (k, k, m, m))
    x = half_of(x) if half else x

    def run(K):
        results = []
        for names in ((), ("mean", "rstd"), ("mean", "rstd", "scale"), ("mean", "rstd", "scale", "shift")):
            numbers = dict(mean=mean, rstd=rstd, scale=scale, shift=shift)
            c, sums = np.zeros((m, n), np.float32), np.zeros(n, np.float32)
            a, b = packed_columns(K, x, **{name: numbers[name] for name in names}), packed_panels(K, dy)
            g = call("gemm_columns", m=m, n=n, k=k, a=at(a), b=panels(b, k), c=matrix(c), column_sums=at(sums))
            for g.accumulate in (0, 1):
                K.gemm_columns(g)
                results += [c.copy(), sums.copy()]
        return results

    both(tables, run)


# ------------------------------------------------------------------------------------------------------------- packers
@pytest.mark.parametrize("half", [False, True], ids=["float", "half"])
@pytest.mark.parametrize("m, k", [(1, 1), (9, 33), (34, 64), (5, 600)])
def test_both_forms(tables, rng, m, k, half):
    """As packed rows, and as some rows of deeper panels."""
    x, depth, row = normal(rng, m, k, dtype=np.float32), m + 36, 32
    x = half_of(x) if half else x

    def run(K):
        a, b, behind = row_room(K, m, k), panel_room(K, depth, k), row + m + m % 2  # rows go in pairs
        for first, count in ((0, row), (behind, depth - behind)):
            ones = np.ones((count, k), np.float32)
            K.pack_panels(call("pack_panels", k=count, n=k, x=matrix(ones), b=panels(b, depth, first)))
        K.pack_both(call("pack_rows", rows=m, k=k, x=matrix(x), scale=1.0, a=rows(a, m), b=panels(b, depth, row)))
        return unpacked_rows(K, a, m, k), unpacked_panels(K, b, depth, k)

    both(tables, run)


@pytest.mark.parametrize("k, n", [(1, 1), (33, 9), (64, 32), (400, 70)])
def test_panels_with_a_factor(tables, rng, k, n):
    x, transposed = normal(rng, k, n + 3, dtype=np.float32)[:, :n], normal(rng, n, k + 5, dtype=np.float32)[:, :k]
    columns, depths = normal(rng, n, dtype=np.float32), normal(rng, k, dtype=np.float32)

    def run(K):
        packed = packed_panels(K, x, factor=columns), packed_panels(K, transposed, factor=depths, transposed=True)
        return [unpacked_panels(K, b, k, n) for b in packed]

    both(tables, run)


@pytest.mark.parametrize("rms", [0, 1])
@pytest.mark.parametrize("m, d", [(1, 5), (33, 48), (40, 400)])
def test_a_norm_to_packed_rows(tables, rng, m, d, rms):
    x, scale, shift = normal(rng, m, d, dtype=np.float32), *normal(rng, 2, d, dtype=np.float32)

    def run(K):
        a = row_room(K, m, d)
        K.norm(call("norm", rows=m, d=d, rms=rms, x=matrix(x), scale=at(scale), shift=at(shift), eps=1e-6,
                    a=rows(a, m)))  # fmt: skip
        return unpacked_rows(K, a, m, d)

    both(tables, run)


@pytest.mark.parametrize("half", [False, True], ids=["float", "half"])
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("m, n", [(1, 1), (6, 40), (33, 384), (70, 65)])
def test_an_activation_and_its_backward(tables, rng, m, n, gated, half):
    """To packed rows that begin where x, and dy, do, unless those are half; and to panels."""
    values, before = normal(rng, 3, m, n, dtype=np.float32), np.ones((6, n), np.float32)
    depth = m + len(before)

    def run(K):
        results = []
        for kind in (0, 3):
            x, value, dy = (scratch_rows(K, v) for v in values)
            if half:
                x, value = half_of(x), half_of(value)
            members = dict(kind=kind, rows=m, n=n, value=matrix(value if gated else None))
            a, a_value, inside = row_room(K, m, n), row_room(K, m, n), x.copy() if half else scratch_rows(K, values[0])
            K.activation(call("activation", **members, x=matrix(x), a=rows(a, m)))
            results.append(unpacked_rows(K, a, m, n))
            if not half:
                K.activation(call("activation", **members, x=matrix(inside), a=rows(inside, m)))
                assert same_bits(unpacked_rows(K, inside, m, n), results[-1])
            b, b_value = panel_room(K, depth, n), panel_room(K, depth, n)
            for room in (b, b_value):
                K.pack_panels(call("pack_panels", k=len(before), n=n, x=matrix(before), b=panels(room, depth)))
            backward = call("activation_backward", **members, x=matrix(x), dy=matrix(dy))
            backward.a, backward.b = rows(dy, m), panels(b, depth, len(before))
            if gated:
                backward.a_value, backward.b_value = rows(a_value, m), panels(b_value, depth, len(before))
            K.activation_backward(backward)
            results.append(x[:, :n].copy())
            for room, panel in [(dy, b)] + [(a_value, b_value)] * gated:
                results += [unpacked_rows(K, room, m, n), unpacked_panels(K, panel, depth, n)]
        return results

    both(tables, run)


@pytest.mark.parametrize("half", [False, True], ids=["float", "half"])
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("size", test_hidden.SIZES)
def test_hidden_rows(tables, rng, size, gated, half):
    test_hidden.check(tables[1], rng, size, gated, half)


# ----------------------------------------------------------------------------------------------------------- attention
@pytest.mark.parametrize("half", [False, True], ids=["float", "half"])
@pytest.mark.parametrize(
    "tokens, dh, first, count",
    [(1, 1, 0, 1), (17, 24, 0, 17), (65, 64, 3, 40), (197, 80, 0, 197), (420, 40, 100, 230), (800, 16, 0, 800)],
)
def test_attention_and_its_backward(tables, rng, tokens, dh, first, count, half):
    """Some of the queries, and of the keys; several blocks of both."""
    qkv, d_o = (normal(rng, tokens, width, dtype=np.float32) for width in (3 * dh + 4, dh + 2))
    qkv = half_of(qkv) if half else qkv
    q, k, v = (qkv[:, i * dh : (i + 1) * dh] for i in range(3))

    def run(K):
        o, lse = np.zeros((tokens, dh + 2), qkv.dtype), np.zeros(tokens, np.float32)
        scratch = aligned(K.attention_scratch(tokens, dh, 0), np.float32)
        members = dict(tokens=tokens, dh=dh, q=matrix(q), k=matrix(k), v=matrix(v), scratch=at(scratch))
        part, part_lse = np.zeros((count, dh), qkv.dtype), np.zeros(count, np.float32)
        K.attention(call("attention", first=0, count=tokens, o=matrix(o), lse=at(lse), **members))
        K.attention(call("attention", first=first, count=count, o=matrix(part), lse=at(part_lse), **members))
        assert same_bits(part, o[first : first + count, :dh]) and same_bits(part_lse, lse[first : first + count])
        scratch = aligned(K.attention_scratch(tokens, dh, 1), np.float32)
        dq, d_kv = np.full((tokens, dh + 1), 7, np.float32), np.full((tokens, 2 * dh + 3), 7, np.float32)
        members |= dict(o=matrix(o), d_o=matrix(d_o), scratch=at(scratch), dq=matrix(dq))
        K.attention_backward(
            call("attention_backward", first=first, count=count, lse=at(lse), dk=matrix(d_kv), dv=matrix(d_kv[:, dh:]),
                 **members)
        )  # fmt: skip
        assert (dq[:, dh:] == 7).all() and (d_kv[:, 2 * dh :] == 7).all()
        assert (d_kv[:first] == 7).all() and (d_kv[first + count :] == 7).all()
        return o, lse, dq, d_kv

    both(tables, run)


# --------------------------------------------------------------------------------------- every kernel, and whole passes
def test_every_kernel_has_the_recorded_bits(amx, tmp_path):
    assert of_each_kernel(lines_of(compiled(tmp_path, KERNELS), amx[0])) == recorded()


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize(
    "options",
    [
        dict(image_size=8, patch_size=2),
        dict(image_size=20, patch_size=2, pool="mean", layer_scale=0.3),
        dict(image_size=8, patch_size=2, gated=True, activation="silu", hidden=400, registers=2),
        dict(image_size=16, patch_size=2, width=70, heads=7, hidden=33),
    ],
    ids=["plain", "layer scale", "gated", "odd sizes"],
)
def test_whole_passes(amx, rng, options, threads):
    """Training and inference to the bits of AVX-512; every thread that configures its tiles releases them."""
    config = ViTConfig(**{**dict(channels=2, width=48, depth=2, heads=3, hidden=80, classes=5), **options})
    weights = normal(rng, Layout.of(config).size, dtype=np.float32) * np.float32(0.2)
    x, y = normal(rng, 5, 2, *config.image_size, dtype=np.float32), np.arange(5)
    cvit.set_isa("avx512")
    cvit.set_num_threads(threads)
    found = {}
    for name, kernels in (("avx512", 0), ("amx", amx[0])):
        grad = np.empty_like(weights)
        plan = Plan(program_of(config), 5, np.float32, "train", precision="bf16", kernels=kernels)
        loss = plan.run_training(weights, x, y, 0.1, grad)
        infer = Plan(program_of(config), 5, np.float32, "infer", precision="bf16", kernels=kernels)
        found[name] = np.float64(loss), grad, plan.logits().copy(), infer.forward(weights, x)[0].copy()
    assert same_bits(found["avx512"], found["amx"])
    configured, released = amx[1]()
    assert configured == released and (released > 0 or "amx" in cvit.available_isas())


# ------------------------------------------------------------------------------------------------------------ dispatch
@pytest.mark.skipif(platform.machine() != "x86_64" or platform.system() != "Linux", reason="asks Linux on x86-64")
@pytest.mark.parametrize("permission, expected", [(0, 1), (-1, 0)], ids=["granted", "refused"])
def test_tiles_need_the_kernels_permission(tmp_path, permission, expected):
    """It is asked for once, and not where the CPU or XCR0 lack tiles; a refusal is no error."""
    unit = compiled(tmp_path, "tests/bf16/permission.c")
    complete = 0x602E6, 1 << 24 | 1 << 22, 1 << 5
    for missing in ((0xE6, *complete[1:]), (0x602E6, 1 << 24, 1 << 5), (0x602E6, 1 << 22, 1 << 5), (*complete[:2], 0)):
        assert unit.amx_with(*missing, ctypes.c_long(permission)) == 0 == unit.times_asked()
    for _ in range(3):
        assert unit.amx_with(*complete, ctypes.c_long(permission)) == expected
    assert unit.times_asked() == 1
