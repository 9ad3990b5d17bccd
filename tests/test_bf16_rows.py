"""The kernels that bfloat16's tables share with float32's, row by row: the same bits on every instruction set, and what
float64 gives but for float32's rounding. Rows that are kept in bfloat16 give what the same numbers in float32 do,
rounded. tests/test_bf16_machines.py compares the bits at more sizes, and of other machines.
"""

import numpy as np
import pytest
import reference as ref
from checks import normal, on_all_isas, same_bits, wide
from kernel_calls import Table, aligned, at, bf16_table, call, matrix, panels, rows
from packed import panel_room, row_room, unpacked_panels, unpacked_rows
from reference_bf16 import float_of, half_of
from reference_ops import activation_backward, activation_forward

from cvit.engine import team

SIZES = (1, 7, 15, 16, 17, 31, 33, 65, 200)
KINDS = ("gelu_tanh", "gelu_erf", "quick_gelu", "silu", "relu", "tanh")
F32 = np.float32


def one_nan(result):
    """Copies of arrays with every NaN the same: which one it is depends on the machine."""
    if isinstance(result, tuple):
        return tuple(map(one_nan, result))
    result = np.array(result)
    nan = (result & 0x7FFF) > 0x7F80 if result.dtype == np.uint16 else np.isnan(result)
    result[nan] = 0x7FC0 if result.dtype == np.uint16 else np.nan
    return result


def everywhere(work):
    """What `work(table)` returns in the floating-point mode of a pass: the same bits on every instruction set of this
    machine. (AMX's table rounds by vcvtneps2bf16, which takes subnormals as zero in any mode.)"""

    def with_the_table():
        K = bf16_table()
        K.enter()
        result = one_nan(team.in_own_mode(work, K))
        K.leave()
        return result

    return on_all_isas(with_the_table)


def assert_near(found, expected, bound=2e-6, size=None):
    """No entry off by more than `bound` times the expected ones' size."""
    size = np.abs(expected).max(initial=0) if size is None else size
    error = np.abs(np.asarray(found, np.float64) - expected)
    assert (error <= bound * size).all(), f"off by {(error / np.maximum(size, 1e-300)).max():.2e}"


# ------------------------------------------------------------------------------------------------------------ norms
@pytest.mark.parametrize("rms", [0, 1])
@pytest.mark.parametrize("d", SIZES)
def test_norms(rng, d, rms):
    m = 5
    x, dy, residual = (normal(rng, m, d, dtype=F32) for _ in range(3))
    x = x * F32(2) + F32(0.5)
    scale, shift, start = (normal(rng, d, dtype=F32) for _ in range(3))

    def work(K):
        y, dx, mean, rstd = np.empty_like(x), np.empty_like(x), np.empty(m, F32), np.empty(m, F32)
        K.norm(call("norm", rows=m, d=d, rms=rms, x=matrix(x), scale=at(scale), shift=at(shift), eps=0.1, y=matrix(y),
                    mean=at(mean), rstd=at(rstd)))  # fmt: skip
        dscale, dshift = start.copy(), start.copy()
        K.norm_backward(
            call("norm_backward", rows=m, d=d, rms=rms, dy=matrix(dy), x=matrix(x), mean=at(mean), rstd=at(rstd),
                 scale=at(scale), residual=matrix(residual), dx=matrix(dx), dscale=at(dscale), dshift=at(dshift))
        )  # fmt: skip
        return y, dx, dscale, dshift

    y, dx, dscale, dshift = everywhere(work)
    x, dy, residual, scale, shift, start = wide(x, dy, residual, scale, shift, start)
    if rms:
        y64, r64 = ref.rmsnorm_forward(x, scale, 0.1)
        assert_near(y, y64 + shift)
        gradients = *ref.rmsnorm_backward(dy, x, r64, scale), dy.sum(0)
    else:
        y64, m64, r64 = ref.layernorm_forward(x, scale, shift, 0.1)
        assert_near(y, y64)
        gradients = ref.layernorm_backward(dy, x, m64, r64, scale)
    assert_near(dx, gradients[0] + residual, 4e-6)
    assert_near(dscale, start + gradients[1], 4e-6)
    assert_near(dshift, start + gradients[2])


# ------------------------------------------------------------------------------------------------------ activations
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n", SIZES)
def test_activations(rng, n, kind, gated):
    m = 3
    x, value, dy = float_of(half_of(normal(rng, m, n) * 3)), float_of(half_of(normal(rng, m, n))), normal(rng, m, n)
    dy = dy.astype(F32)
    members = dict(kind=KINDS.index(kind), rows=m, n=n)

    def work(half):
        def forward_and_backward(K):
            here, other = (half_of(array) if half else array.copy() for array in (x, value))
            gate = dict(value=matrix(other)) if gated else {}
            y, plain, dx, dvalue = np.empty_like(here), np.empty_like(x), dy.copy(), np.zeros_like(x)
            for to in (y, plain):
                K.activation(call("activation", **members, x=matrix(here), y=matrix(to), **gate))
            K.activation_backward(
                call("activation_backward", **members, x=matrix(here), dy=matrix(dx), dvalue=matrix(dvalue), **gate)
            )
            return y, plain, here, dx, dvalue

        return everywhere(forward_and_backward)

    y, plain, again, dx, dvalue = work(half=False)
    halves = work(half=True)
    assert same_bits(y, plain) and (gated or same_bits(again, y))
    assert_near(again, wide(y)[0], size=np.abs(y))
    assert same_bits(halves, (half_of(y), y, half_of(again), dx, dvalue))
    x, value, dy = wide(x, value, dy)
    value = value if gated else np.ones_like(x)
    f = activation_forward(x, kind)
    assert_near(y, f * value, size=(np.abs(x) + 1) * np.abs(value))
    assert_near(dx, activation_backward(dy, x, kind) * value, size=(x**2 + 3) * np.abs(dy * value))
    assert_near(dvalue, dy * f * gated, size=(np.abs(x) + 1) * np.abs(dy))


@pytest.mark.parametrize("kind", KINDS)
def test_what_an_activation_makes_of_the_ends(kind):
    """NaN stays where it is, infinities give the limits, and next to nothing is left of large negative numbers; outputs
    do not fall where the function rises."""
    x = np.array([[np.nan, np.inf, -np.inf, 3e38, -3e38, 0.0, -0.0, 1e-39, 50, -50]], F32)
    x = np.concatenate([x, np.sort(np.linspace(-0.5, 12, 4000).astype(F32))[None]], axis=1)

    def work(K):
        y, half = np.empty_like(x), np.empty(x.shape, np.uint16)
        for to, source in ((y, x), (half, half_of(x))):
            K.activation(call("activation", kind=KINDS.index(kind), rows=1, n=x.size, x=matrix(source), y=matrix(to)))
        return y, half

    y, half = everywhere(work)
    for found in (y[0], float_of(half)[0]):
        assert np.isnan(found[0]) and not np.isnan(found[3:]).any()
        top = [1, 1] if kind == "tanh" else [np.inf, x[0, 3]]
        assert found[1] == top[0] and abs(found[3] / top[1] - 1) < 2**-8
        if kind in ("gelu_tanh", "quick_gelu", "silu", "relu"):
            assert np.abs(found[[2, 4, 9]]).max() < 1e-15
        assert not found[5:7].any()
        assert (np.diff(found[10:]) >= -2e-7).all()


def test_gradients_that_are_packed(rng):
    """To packed rows and panels goes what goes to plain rows, rounded."""
    m, n = 6, 70
    x, value, dy = (normal(rng, m, n, dtype=F32) for _ in range(3))

    def work(K):
        kept, plain, dvalue, dx, given = x.copy(), x.copy(), np.empty_like(x), dy.copy(), dy.copy()
        members = dict(kind=0, rows=m, n=n, value=matrix(value))
        K.activation_backward(
            call("activation_backward", **members, x=matrix(plain), dy=matrix(dx), dvalue=matrix(dvalue))
        )
        room, panel = [row_room(K, m, n) for _ in range(2)], [panel_room(K, m, n) for _ in range(2)]
        a, a_value, b, b_value = *(rows(each, m) for each in room), *(panels(each, m) for each in panel)
        K.activation_backward(
            call("activation_backward", **members, x=matrix(kept), dy=matrix(given), a=a, a_value=a_value, b=b,
                 b_value=b_value)
        )  # fmt: skip
        back = [unpacked_rows(K, each, m, n) for each in room] + [unpacked_panels(K, each, m, n) for each in panel]
        for found, expected in zip(back, (dx, dvalue, dx, dvalue)):
            assert same_bits(half_of(found), half_of(expected)) and same_bits(float_of(half_of(found)), found)
        assert same_bits(kept, plain)
        return dx, dvalue

    everywhere(work)


# ------------------------------------------------------------------------------------------------------------- sums
@pytest.mark.parametrize("n", SIZES)
def test_sums(rng, n):
    m = 7
    x, add, dw = (normal(rng, m, n, dtype=F32) for _ in range(3))
    columns, start = normal(rng, n, dtype=F32), normal(rng, n, dtype=F32)

    def work(K):
        y, total, scaled, products = np.empty_like(x), start.copy(), dw.copy(), np.empty(n, F32)
        K.add_rows(call("add_rows", rows=m, n=n, x=matrix(x), factor=0.7, columns=at(columns), add=matrix(add),
                        y=matrix(y)))  # fmt: skip
        K.column_sums(call("column_sums", rows=m, n=n, x=matrix(x), accumulate=1, scale=0.3, sums=at(total)))
        K.unscale(call("unscale", rows=m, n=n, w=matrix(x), dw=matrix(scaled), factor=at(columns), sums=at(products)))
        return y, total, scaled, products, K.sum_of_squares(x.size, at(x))

    y, total, scaled, products, squares = everywhere(work)
    x, add, dw, columns, start = wide(x, add, dw, columns, start)
    assert_near(y, 0.7 * x * columns + add)
    assert_near(total, (start + x.sum(0)) * 0.3, size=4)
    assert_near(scaled, dw * columns)
    assert_near(products, (x * dw).sum(0), size=4)
    assert_near(squares, (x**2).sum())


@pytest.mark.parametrize("column", [None, [1.2e-38, -1.3e-38]], ids=["normal", "subnormal sum"])
def test_a_column_has_the_same_sum_wherever_it_stands(rng, column):
    """Its bits do not depend on how many columns there are beside it: whole vectors of a machine are no rule."""
    x = np.tile(normal(rng, 9, 1, dtype=F32) if column is None else np.array(column, F32)[:, None], 45)

    def work(K):
        total = np.zeros(45, F32)
        K.column_sums(call("column_sums", rows=len(x), n=45, x=matrix(x), scale=1.0, sums=at(total)))
        return total

    assert len(set(everywhere(work).view(np.uint32).tolist())) == 1


def test_squares_that_overflow():
    x = np.array([1e30, 2e25, 3.0] * 30, F32)
    assert_near(everywhere(lambda K: K.sum_of_squares(x.size, at(x))), (x.astype(float) ** 2).sum(), 1e-14)


# ------------------------------------------------------------------------------------------------------------- loss
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("labels", [True, False])
@pytest.mark.parametrize("n", SIZES)
def test_cross_entropy(rng, n, labels, smoothing):
    logits, target = normal(rng, n, dtype=F32) * F32(4), np.abs(normal(rng, n, dtype=F32))
    label = n // 2

    def work(K):
        d = np.empty(n, F32)
        goal = dict(label=label) if labels else dict(target=at(target))
        loss = K.cross_entropy(
            call("cross_entropy", n=n, logits=at(logits), smoothing=smoothing, weight=0.7, dlogits=at(d), **goal)
        )
        return np.float64(loss), d

    loss, d = everywhere(work)
    y = np.array([label]) if labels else wide(target)[0][None]
    expected, logp = ref.cross_entropy_forward(wide(logits)[0][None], y, smoothing)
    assert_near(loss, expected, size=abs(expected) + 5)
    assert_near(d, 0.7 * ref.cross_entropy_backward(logp, y, smoothing)[0], size=target.sum() + 1)


def test_a_loss_of_infinite_logits_and_of_nan():
    """A class of probability 0 does not count; as the label its loss is infinite; NaN gives NaN."""

    def work(K):
        found = []
        for index, odd in ((3, -np.inf), (20, -np.inf), (20, np.nan), (3, np.inf)):
            logits, d = np.linspace(-1, 1, 37).astype(F32), np.empty(37, F32)
            logits[index] = odd
            loss = K.cross_entropy(call("cross_entropy", n=37, label=20, logits=at(logits), weight=1.0, dlogits=at(d)))
            found += [np.float64(loss), d]
        return tuple(found)

    finite, d, infinite, _, nan, d_nan, _, _ = everywhere(work)
    assert np.isfinite(finite) and d[3] == 0 and np.isfinite(d).all()
    assert infinite == np.inf and np.isnan(nan) and np.isnan(d_nan).all()


# -------------------------------------------------------------------------------------------- attention of one query
@pytest.mark.parametrize("dh", [1, 13, 16, 64, 72])
@pytest.mark.parametrize("tokens", SIZES)
def test_attend(rng, tokens, dh):
    q, d_o = normal(rng, dh, dtype=F32), normal(rng, dh, dtype=F32)
    k, v = normal(rng, tokens, dh, dtype=F32), normal(rng, tokens, dh, dtype=F32)

    def work(K):
        o, dq, dk, dv = (np.empty_like(array) for array in (q, q, k, v))
        members = dict(tokens=tokens, dh=dh, q=at(q), k=matrix(k), v=matrix(v))
        scratch = aligned(K.attend_scratch(tokens), F32)
        K.attend(call("attend", **members, o=at(o), scratch=at(scratch)))
        K.attend_backward(
            call(
                "attend_backward", **members, d_o=at(d_o), dq=at(dq), dk=matrix(dk), dv=matrix(dv), scratch=at(scratch)
            )
        )
        return o, dq, dk, dv

    o, *gradients = everywhere(work)
    heads = [array[None, None] for array in wide(q[None], k, v)]
    expected, lse = ref.attention_forward(*heads)
    assert_near(o, expected[0, 0, 0], 4e-6, size=3)
    for found, exact in zip(gradients, ref.attention_backward(wide(d_o)[0][None, None, None], *heads, expected, lse)):
        assert_near(found, exact[0, 0].reshape(found.shape), 4e-6, size=np.abs(exact).max() + 3)


# ------------------------------------------------------------------------------------------------- rotations, drops
@pytest.mark.parametrize("half", [1, 7, 16, 33])
def test_rotations(rng, half):
    m, heads = 5, 3
    x, dy = normal(rng, m, heads * 2 * half, dtype=F32), normal(rng, m, heads * 2 * half, dtype=F32)
    angles, places = normal(rng, m, half) * 3, normal(rng, m, 2, dtype=F32)
    cosines, sines = np.cos(angles).astype(F32), np.sin(angles).astype(F32)
    start = normal(rng, 2 * heads * half, dtype=F32)

    def work(K):
        y, sums, back = x.copy(), start.copy(), dy.copy()
        members = dict(rows=m, heads=heads, half=half, cosines=matrix(cosines), sines=matrix(sines))
        K.rotate(call("rotate", **members, x=matrix(y)))
        K.rotate_frequencies(
            call("rotate_frequencies", rows=m, heads=heads, half=half, y=matrix(y), dy=matrix(dy),
                 coordinates=at(places), sums=at(sums))
        )  # fmt: skip
        K.rotate(call("rotate", **members, x=matrix(back), back=1))
        return y, back, sums

    y, back, sums = everywhere(work)
    x, dy, places, start = wide(x, dy, places, start)
    per_head = [array.reshape(m, heads, 2 * half) for array in (x, dy, np.asarray(y, np.float64))]
    cos, sin = np.cos(angles)[:, None], np.sin(angles)[:, None]
    for found, given, sign in ((y, per_head[0], 1), (back, per_head[1], -1)):
        a, b = given[..., :half], given[..., half:]
        turned = np.concatenate([a * cos - sign * b * sin, b * cos + sign * a * sin], axis=-1)
        assert_near(found, turned.reshape(m, -1))
    of_y, of_dy = per_head[2], per_head[1]
    dangle = of_dy[..., half:] * of_y[..., :half] - of_dy[..., :half] * of_y[..., half:]
    assert_near(sums, start + np.einsum("rhj,ra->ahj", dangle, places).ravel())


@pytest.mark.parametrize("n", SIZES)
def test_drops(rng, n):
    """The elements that float32's table drops; rows of bfloat16 give the rounded results of rows of float32."""
    x, add = float_of(half_of(normal(rng, 4, n))), normal(rng, 4, n, dtype=F32)
    options = dict(seed=5, sample=2, row=3, place=1, branch=1, rate=0.3)

    def work(K):
        found = []
        for source, more in ((x, None), (x, add), (half_of(x), None)):
            y = np.empty_like(source)
            K.drop(call("drop", rows=4, n=n, x=matrix(source), add=matrix(more), y=matrix(y), **options))
            found.append(y)
        return tuple(found)

    def float32s(K):
        y = np.empty_like(x)
        K.drop(call("drop", rows=4, n=n, x=matrix(x), y=matrix(y), **options))
        return y

    plain, added, half = everywhere(work)
    assert same_bits(plain, float32s(Table(F32))) and same_bits(half, half_of(plain))
    assert_near(added, plain.astype(float) + add)
    assert same_bits(plain[plain != 0], (x * F32(1 / 0.7))[plain != 0])


# ---------------------------------------------------------------------------------------------- updates, functions
@pytest.mark.parametrize("n", SIZES)
def test_updates(rng, n):
    w, g, m, v = (normal(rng, n, dtype=F32) for _ in range(4))
    v = v * v
    members = dict(n=n, g=at(g), lr=0.05, decay=0.01, scale=0.5)

    def work(K):
        results = [array.copy() for array in (w, m, w, m, w, m, v, m)]
        first, u, nesterov, u2, adam, m2, v2, mean = results
        K.sgd(call("update", **members, w=at(first), m=at(u), beta1=0.9))
        K.sgd(call("update", **members, w=at(nesterov), m=at(u2), beta1=0.9, nesterov=1))
        K.adamw(call("update", **members, w=at(adam), m=at(m2), v=at(v2), beta1=0.9, beta2=0.99, eps=1e-6,
                     c1=1 - 0.9**3, c2=1 - 0.99**3))  # fmt: skip
        K.average(n, 0.1, at(w), at(mean))
        return tuple(results)

    found = everywhere(work)
    w, g, m, v = wide(w, g, m, v)
    options = dict(weight_decay=0.01, grad_scale=0.5)
    expected = [
        *ref.sgd_step(w, g, m, 0.05, 0.9, **options), *ref.sgd_step(w, g, m, 0.05, 0.9, nesterov=True, **options),
        *ref.adamw_step(w, g, m, v, 0.05, 0.9, 0.99, 1e-6, options.pop("weight_decay"), 3, **options),
        m + 0.1 * (w - m),
    ]  # fmt: skip
    for array, exact in zip(found, expected, strict=True):
        assert_near(array, exact, size=np.abs(exact).max() + 1)


@pytest.mark.parametrize(
    "index, function, low, high, bound",
    [
        (0, np.exp, -87, 88, 2e-7),
        (1, np.tanh, -20, 20, 4e-7),
        (2, np.vectorize(ref.erf), -5, 5, 3e-7),
        (3, np.exp2, -126, 127, 3e-7),
        (4, np.log, 1, 1e9, 3e-7),
    ],
    ids=["exp", "tanh", "erf", "exp2", "log"],
)
def test_functions(rng, index, function, low, high, bound):
    """Off by no more than a few units in the last place, at odd counts of numbers; NaN in, NaN out."""
    x = np.concatenate([np.linspace(low, high, 3001), [0.25, 1.5, np.nan]]).astype(F32)

    def work(K):
        y = np.empty_like(x)
        K.apply(index, x.size, at(x), at(y))
        return y

    y = everywhere(work)
    exact = function(x[:-1].astype(np.float64))
    assert_near(y[:-1], exact, bound, size=np.abs(exact) + 1e-30)
    assert np.isnan(y[-1])
