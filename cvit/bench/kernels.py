"""The kernels one by one, each against its roofline, min(peak, intensity x bandwidth) (Williams et al. 2009).

A kernel takes at least FLOPs / peak and at least bytes / bandwidth, its bytes being inputs read once and outputs
written once. What memory limits is timed on more rows than the case has, several times the last cache: the cache would
beat the roof. Each kernel's result is compared with NumPy's, at the case's own shape, before it is timed.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
import time
from collections.abc import Callable, Iterator

import numpy as np

from ..engine import update as _update
from ..engine.runtime import get_num_threads, set_num_threads
from ..model.layout import Layout
from ..ops import ACTIVATIONS
from ..ops import _kernels as _ops
from .cases import Case
from .machine import caches
from .report import milliseconds, percent

# Floating-point operations for one element, roughly: exp and tanh are the polynomials they are computed with. These
# only place a kernel on the roofline's axis; memory limits all of them.
GELU_TANH = ACTIVATIONS.index("gelu_tanh")
NORM, NORM_BACKWARD, GELU, GELU_BACKWARD, CROSS_ENTROPY, SGD, ADAMW = 8, 14, 25, 35, 25, 2, 15

TOLERANCE = 2e-6  # relative to the largest element, for each root of a summed element
CACHES = 4  # times the last cache is what memory-bound kernels work on
LARGEST = 2**30  # bytes of their arrays at most


@dataclasses.dataclass
class Kernel:
    """One kernel with its arguments at hand.

    `run` writes to `results`. Where it changes its own inputs, `restore` sets them back, and at most `calls` in a row
    make sense.
    """

    kind: str
    shape: str
    run: Callable[[], object]
    results: tuple[np.ndarray, ...]
    expected: Callable[[], tuple[np.ndarray, ...]]  # by NumPy; called before `run`
    flops: float
    floats: float  # values read and written
    summed: int = 1  # elements of the longest sum
    restore: Callable[[], None] = lambda: None
    calls: int = 10_000

    @property
    def bytes(self) -> float:
        return 4 * self.floats


def kernels_of(case: Case, least_bytes: float = 0) -> Iterator[Kernel]:
    """The kernels of a training step of `case`, each made when it is asked for.

    Those that memory limits get as many rows as make their arrays `least_bytes`, and no fewer than the case has.
    """
    config = case.config
    N, T, D, H, F = case.batch, config.tokens, config.width, config.heads, config.hidden
    draw = Draw()
    for name, fan_in, fan_out in (("qkv", D, 3 * D), ("proj", D, D), ("fc1", D, F), ("fc2", F, D)):
        yield _linear(draw(N * T, fan_in), draw(fan_in, fan_out), draw(fan_out), name)
        yield _linear_backward(draw(N * T, fan_out), draw(N * T, fan_in), draw(fan_in, fan_out), name)

    def rows(count: int, floats: int) -> int:
        return max(count, math.ceil(least_bytes / (4 * floats)))

    yield from _attention_kernels(draw, N * H, T, D // H)
    yield from _layernorm_kernels(draw, rows(N * T, 2 * D), D, config.eps)
    yield from _gelu_kernels(draw, rows(N * T, 2 * F), F)
    yield from _cross_entropy_kernels(draw, rows(N, 2 * config.classes), config.classes)
    yield from _optimizer_kernels(draw, rows(Layout.of(config).size, 3))


class Draw:
    """Draws float32 arrays of standard normal values, the same ones in every run."""

    def __init__(self) -> None:
        self.rng = np.random.default_rng(0)

    def __call__(self, *shape: int) -> np.ndarray:
        return self.rng.standard_normal(shape, np.float32)


def _empty(*shape: int) -> np.ndarray:
    return np.zeros(shape, np.float32)  # touched, unlike np.empty: no page faults are timed


def _attention_kernels(draw, heads, T, dh):
    q, k, v, do = (draw(heads, T, dh) for _ in range(4))
    o, lse, *grads = _empty(*q.shape), _empty(heads, T), *(_empty(*q.shape) for _ in range(3))
    shape, flops = f"{heads}x{T}x{dh}", 4 * heads * T * T * dh
    yield Kernel(
        "attention", shape, lambda: _ops.attention(q, k, v, o, lse), (o, lse), lambda: _attention(q, k, v),
        flops, 4 * q.size + lse.size, T,
    )  # fmt: skip
    _ops.attention(q, k, v, o, lse)
    # As for the whole model, backward counts as twice forward: the scores that it computes again are its own affair.
    yield Kernel(
        "attention backward", shape, lambda: _ops.attention_backward(do, q, k, v, o, lse, *grads), tuple(grads),
        lambda: _attention_backward(do, q, k, v), 2 * flops, 8 * q.size + lse.size, T,
    )  # fmt: skip


def _layernorm_kernels(draw, m, D, eps):
    x, dy, scale, shift = draw(m, D), draw(m, D), draw(D), draw(D)
    y, mean, rstd, dscale, dshift = _empty(m, D), _empty(m), _empty(m), _empty(D), _empty(D)
    forward = lambda: _ops.layernorm(x, scale, shift, eps, y, mean, rstd)
    yield Kernel(
        "layernorm", f"{m}x{D}", forward, (y, mean, rstd), lambda: _layernorm(x, scale, shift, eps),
        NORM * m * D, 2 * m * D,
    )  # fmt: skip
    forward()
    yield Kernel(
        "layernorm backward", f"{m}x{D}",
        lambda: _ops.layernorm_backward(dy, x, mean, rstd, scale, y, dscale, dshift), (y, dscale, dshift),
        lambda: _layernorm_backward(dy, x, mean, rstd, scale), NORM_BACKWARD * m * D, 3 * m * D, m,
    )  # fmt: skip


def _gelu_kernels(draw, m, F):
    x, y = draw(m * F), _empty(m * F)
    yield Kernel(
        "gelu",
        f"{m}x{F}",
        lambda: _ops.activation(GELU_TANH, x, None, y),
        (y,),
        lambda: (_gelu(x),),
        GELU * m * F,
        2 * m * F,
    )
    before, dy = x.copy(), draw(m * F)

    def restore():
        x[:], dy[:] = before, before

    restore()
    yield Kernel(  # the fused form of the engine: x becomes gelu(x), dy becomes dx
        "gelu backward", f"{m}x{F}", lambda: _ops.activation_backward(GELU_TANH, x, None, dy, None), (x, dy),
        lambda: (_gelu(x), _gelu_backward(dy, x)), GELU_BACKWARD * m * F, 4 * m * F, restore=restore, calls=50,
    )  # fmt: skip


def _cross_entropy_kernels(draw, m, classes):
    logits, labels = draw(m, classes), draw.rng.integers(classes, size=m)
    losses, dlogits = _empty(m), _empty(m, classes)
    yield Kernel(
        "cross-entropy", f"{m}x{classes}", lambda: _ops.cross_entropy(logits, labels, None, 0.0, losses, dlogits),
        (losses, dlogits), lambda: _cross_entropy(logits, labels), CROSS_ENTROPY * m * classes, 2 * m * classes,
        classes,
    )  # fmt: skip


def _optimizer_kernels(draw, n):
    w, grad, first, second = draw(n), draw(n), _empty(n), _empty(n)
    none = np.empty((0, 2), np.int64)
    lr, betas, eps = 1e-3, (0.9, 0.999), 1e-8
    yield Kernel(
        "sgd", f"{n}", lambda: _update.sgd(w, grad, None, lr, 0.0, False, 0.0, none, 1.0), (w,),
        lambda: (w - np.float32(lr) * grad,), SGD * n, 3 * n,
    )  # fmt: skip
    yield Kernel(
        "adamw", f"{n}", lambda: _update.adamw(w, grad, first, second, lr, *betas, eps, 0.0, 1, none, 1.0),
        (w, first, second), lambda: _adamw(w, grad, lr, *betas, eps), ADAMW * n, 7 * n,
    )  # fmt: skip


def _linear(x, w, bias, name):
    y = np.zeros((len(x), w.shape[1]), np.float32)
    shape = f"{len(x)}x{w.shape[0]}x{w.shape[1]} {name}"
    floats = x.size + w.size + bias.size + y.size
    return Kernel(
        "gemm", shape, lambda: _ops.linear(x, w, bias, y), (y,), lambda: (x @ w + bias,), 2 * x.size * w.shape[1],
        floats, w.shape[0],
    )  # fmt: skip


def _linear_backward(dy, x, w, name):
    dx, dw, db = np.zeros_like(x), np.zeros_like(w), np.zeros(w.shape[1], np.float32)
    shape = f"{len(x)}x{w.shape[0]}x{w.shape[1]} {name}"
    floats = dy.size + 2 * (x.size + w.size) + db.size
    return Kernel(
        "gemm backward", shape, lambda: _ops.linear_backward(dy, x, w, dx, dw, db), (dx, dw, db),
        lambda: (dy @ w.T, x.T @ dy, dy.sum(0)), 4 * x.size * w.shape[1], floats, max(len(x), w.shape[1]),
    )  # fmt: skip


# ---------------------------------------------------------------------------------------------- the same in NumPy
def _layernorm(x, scale, shift, eps):
    mean, rstd = x.mean(-1), 1 / np.sqrt(x.var(-1) + np.float32(eps))
    return (x - mean[:, None]) * rstd[:, None] * scale + shift, mean, rstd


def _layernorm_backward(dy, x, mean, rstd, scale):
    xhat, dxhat = (x - mean[:, None]) * rstd[:, None], dy * scale
    dx = dxhat - dxhat.mean(-1, keepdims=True) - xhat * (dxhat * xhat).mean(-1, keepdims=True)
    return rstd[:, None] * dx, (dy * xhat).sum(0), dy.sum(0)


def _gelu(x):
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def _gelu_backward(dy, x):
    tanh = np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))
    return dy * 0.5 * (1 + tanh + x * (1 - tanh**2) * math.sqrt(2 / math.pi) * (1 + 3 * 0.044715 * x**2))


def _attention(q, k, v):
    scores = q @ k.swapaxes(1, 2) / np.float32(math.sqrt(q.shape[-1]))
    top = scores.max(-1, keepdims=True)
    lse = top + np.log(np.exp(scores - top).sum(-1, keepdims=True))
    return np.exp(scores - lse) @ v, lse[..., 0]


def _attention_backward(do, q, k, v):
    scale = np.float32(q.shape[-1] ** -0.5)
    o, lse = _attention(q, k, v)
    p = np.exp(q @ k.swapaxes(1, 2) * scale - lse[..., None])
    ds = p * (do @ v.swapaxes(1, 2) - (do * o).sum(-1, keepdims=True)) * scale
    return ds @ k, ds.swapaxes(1, 2) @ q, p.swapaxes(1, 2) @ do


def _cross_entropy(logits, labels):
    e = np.exp(logits - logits.max(-1, keepdims=True))
    p, rows = e / e.sum(-1, keepdims=True), np.arange(len(logits))
    losses = -np.log(p[rows, labels])
    p[rows, labels] -= 1
    return losses, p / np.float32(len(logits))


def _adamw(w, grad, lr, beta1, beta2, eps):
    """The first step, from moments of zero."""
    return w - lr * grad / (np.abs(grad) + eps), (1 - beta1) * grad, (1 - beta2) * grad**2


# -------------------------------------------------------------------------------------------------- check and time
def error_of(kernel: Kernel) -> float:
    """Largest difference between the kernel's results and NumPy's, relative to the largest element of each."""
    expected = kernel.expected()
    kernel.run()
    errors = []
    for result, wanted in zip(kernel.results, expected, strict=True):
        errors.append(float(np.max(np.abs(result - wanted)) / max(np.max(np.abs(wanted)), 1e-30)))
    return max(errors) if all(map(math.isfinite, errors)) else math.inf


def time_of(kernel: Kernel, rounds: int, seconds: float) -> list[float]:
    """Mean seconds of a call, round by round."""
    kernel.run()
    start = time.perf_counter()
    kernel.run()
    took = max(time.perf_counter() - start, 1e-9)
    calls = max(1, min(kernel.calls, math.ceil(seconds / took)))
    means = []
    for _ in range(rounds):
        kernel.restore()
        start = time.perf_counter()
        for _ in range(calls):
            kernel.run()
        means.append((time.perf_counter() - start) / calls)
    return means


def kernels(bench, chosen: list[Case], least_bytes: float | None = None) -> None:
    """Every kernel of each case: time, speed, and the share of its roofline."""
    settings, limits, report = bench.settings, bench.limits, bench.report
    table = report.table(
        "Kernels; roofline: share of min(peak, intensity x bandwidth); bound: which of the two it is",
        ("case", -9), ("kernel", -19), ("shape", -20), ("ms", 8), ("GFLOP/s", 8), ("GB/s", 6), ("bound", -7),
        ("roofline", 8),
    )  # fmt: skip
    if least_bytes is None:
        least_bytes = min(LARGEST, CACHES * max(caches().values(), default=2**25))
    peak, bandwidth = limits.peak[settings.threads], limits.bandwidth[settings.threads]
    before = get_num_threads()
    set_num_threads(settings.threads)
    try:
        for case in chosen:
            table.gap()
            for small, kernel in zip(kernels_of(case), kernels_of(case, least_bytes)):
                report.status(f"{case.name}: {kernel.kind} {kernel.shape}")
                error, limit = error_of(small), TOLERANCE * math.sqrt(small.summed)
                if not error <= limit:
                    what = f"{case.name}: {small.kind} {small.shape}"
                    report.fault(f"{what}: differs from NumPy's by {error:.1e} relatively (limit {limit:.1e})")
                    continue
                rounds = time_of(kernel, settings.rounds, settings.seconds)
                seconds = statistics.median(rounds)
                least = {"compute": kernel.flops / peak, "memory": kernel.bytes / bandwidth}
                bound = max(least, key=lambda name: least[name])
                table.row(
                    case.name, kernel.kind, kernel.shape, milliseconds(seconds), f"{kernel.flops / seconds / 1e9:.1f}",
                    f"{kernel.bytes / seconds / 1e9:.1f}", bound, percent(least[bound] / seconds),
                )  # fmt: skip
                report.add(
                    "kernels", case=case.name, kind=kernel.kind, shape=kernel.shape, threads=settings.threads,
                    flops=kernel.flops, bytes=kernel.bytes, rounds=rounds, seconds=seconds,
                    flops_per_s=kernel.flops / seconds, bytes_per_s=kernel.bytes / seconds, bound=bound,
                    share=least[bound] / seconds, error=error,
                )  # fmt: skip
    finally:
        set_num_threads(before)
