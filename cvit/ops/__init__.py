"""Each kernel alone, with its backward: linear, norms, activations, attention, dropout, loss and others.

Plain functions from NumPy arrays to new NumPy arrays, float32 or float64 (all arguments of one call alike), run on all
threads; no graph and no state: a backward takes what its forward took or gave. A gradient is named d + its array. What
each formula means is derived in docs/backward.md. A model does not call these: it runs the same kernels fused
(cvit/engine).
"""

from __future__ import annotations

from typing import overload

import numpy as np
from numpy.typing import ArrayLike

from ..base.arrays import as_array, as_float, as_labels, common_dtype
from ..base.errors import check
from ..base.numbers import as_int, representable, shown
from . import _heads
from . import _kernels as _ops
from .dropout import drop, drop_backward

__all__ = [
    "activation", "activation_backward", "attend", "attend_backward", "attention", "attention_backward",
    "cross_entropy", "cross_entropy_backward", "drop", "drop_backward", "erf", "exp", "gelu", "gelu_backward",
    "layernorm", "layernorm_backward", "linear", "linear_backward", "patches", "patches_backward", "rmsnorm",
    "rmsnorm_backward", "rotate", "rotate_backward", "rotate_frequencies", "tanh",
]  # fmt: skip

FORMS = ("tanh", "erf")  # of GELU
ACTIVATIONS = ("gelu_tanh", "gelu_erf", "quick_gelu", "silu", "relu", "tanh")  # as csrc/cvit.h numbers them


def _rows(array: np.ndarray) -> np.ndarray:
    """(…, d) as (rows, d)."""
    return array.reshape(-1, array.shape[-1])


def _not_empty(**arrays: np.ndarray) -> None:
    for name, array in arrays.items():
        check(array.size > 0, f"{name} must not be empty, got shape {array.shape}")


def _any_rows(name: str, value, dtype, last: int | None = None) -> np.ndarray:
    """An array (…, d) of at least one axis, with d = last if that is given."""
    array = as_array(name, value)
    check(array.ndim >= 1, f"{name} must have at least one axis, got a scalar")
    if last is not None:
        check(array.shape[-1] == last, f"{name}'s last axis must be {last}, got shape {array.shape}")
    array = as_float(name, array, array.shape, dtype)
    _not_empty(**{name: array})
    return array


def patches(x, patch_size: int) -> np.ndarray:
    """Cut images x (N, C, H, W) into patches (N, patches, C·P·P), row by row over the grid, each flat (C, P, P)."""
    x = as_float("x", x, ("N", "C", "H", "W"))
    _not_empty(x=x)
    P = as_int("patch_size", patch_size)
    N, C, H, W = x.shape
    check(H % P == 0 and W % P == 0, f"patch_size must divide the image size {H}x{W}, got {P}")
    out = np.empty((N, (H // P) * (W // P), C * P * P), x.dtype)
    _ops.patches(x, P, out)
    return out


def patches_backward(dpatches, image_shape: tuple[int, int, int], patch_size: int) -> np.ndarray:
    """dx (N, C, H, W) from dpatches (N, patches, C·P·P), with image_shape = (C, H, W)."""
    P = as_int("patch_size", patch_size)
    if not isinstance(image_shape, (tuple, list)):
        raise TypeError(f"image_shape must be (channels, height, width), got {shown(image_shape)}")
    check(len(image_shape) == 3, f"image_shape must be (channels, height, width), got {shown(image_shape)}")
    C, H, W = (as_int("image_shape", length) for length in image_shape)
    check(H % P == 0 and W % P == 0, f"patch_size must divide the image size {H}x{W}, got {P}")
    dpatches = as_float("dpatches", dpatches, ("N", (H // P) * (W // P), C * P * P))
    _not_empty(dpatches=dpatches)
    dx = np.empty((len(dpatches), C, H, W), dpatches.dtype)
    _ops.patches_backward(dpatches, P, dx)
    return dx


def linear(x, w, bias=None) -> np.ndarray:
    """y = x @ w + bias: x (…, K), w (K, M), bias (M,) or None, y (…, M)."""
    dtype = common_dtype(x=x, w=w)
    w = as_float("w", w, ("K", "M"), dtype)
    x = _any_rows("x", x, dtype, w.shape[0])
    _not_empty(w=w)
    if bias is not None:
        bias = as_float("bias", bias, (w.shape[1],), dtype)
    y = np.empty((*x.shape[:-1], w.shape[1]), dtype)
    _ops.linear(_rows(x), w, bias, _rows(y))
    return y


def linear_backward(dy, x, w) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """dx (…, K), dw (K, M) and the bias's db (M,) from dy (…, M), x (…, K) and w (K, M)."""
    dtype = common_dtype(dy=dy, x=x, w=w)
    w = as_float("w", w, ("K", "M"), dtype)
    _not_empty(w=w)
    x = _any_rows("x", x, dtype, w.shape[0])
    dy = as_float("dy", dy, (*x.shape[:-1], w.shape[1]), dtype)
    dx, dw, db = np.empty_like(x), np.empty_like(w), np.empty(w.shape[1], dtype)
    _ops.linear_backward(_rows(dy), _rows(x), w, _rows(dx), dw, db)
    return dx, dw, db


def _eps(eps: float, dtype) -> float:
    return representable("eps", eps, dtype, positive=eps != 0)  # 0 is the caller's word, not what a small number became


def layernorm(x, scale=None, shift=None, eps: float = 1e-6) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Layer norm over the last axis (Ba et al. 2016): y = (x - mean) / sqrt(var + eps) * scale + shift, var biased.

    x (…, D); scale and shift (D,), both or neither. Returns y (…, D), and mean and rstd (…,), which the backward takes.
    """
    x = _any_rows("x", x, None)
    D = x.shape[-1]
    check((scale is None) == (shift is None), "scale and shift must be given together or not at all")
    if scale is not None:
        scale, shift = as_float("scale", scale, (D,), x.dtype), as_float("shift", shift, (D,), x.dtype)
    y, mean, rstd = np.empty_like(x), np.empty(x.shape[:-1], x.dtype), np.empty(x.shape[:-1], x.dtype)
    _ops.layernorm(_rows(x), scale, shift, _eps(eps, x.dtype), _rows(y), mean.reshape(-1), rstd.reshape(-1))
    return y, mean, rstd


def layernorm_backward(dy, x, mean, rstd, scale=None) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
    """dx (…, D), dscale (D,) and dshift (D,) from dy and x (…, D), mean and rstd (…,).

    dscale and dshift are None without `scale`.
    """
    dtype = common_dtype(dy=dy, x=x)
    x = _any_rows("x", x, dtype)
    D = x.shape[-1]
    dy = as_float("dy", dy, x.shape, dtype)
    mean = as_float("mean", mean, x.shape[:-1], dtype)
    rstd = as_float("rstd", rstd, x.shape[:-1], dtype)
    dscale = dshift = None
    if scale is not None:
        scale = as_float("scale", scale, (D,), dtype)
        dscale, dshift = np.empty(D, dtype), np.empty(D, dtype)
    dx = np.empty_like(x)
    _ops.layernorm_backward(_rows(dy), _rows(x), mean.reshape(-1), rstd.reshape(-1), scale, _rows(dx), dscale, dshift)
    return dx, dscale, dshift


def rmsnorm(x, scale=None, eps: float = 1e-6) -> tuple[np.ndarray, np.ndarray]:
    """RMSNorm over the last axis (Zhang & Sennrich 2019): y = x / sqrt(mean(x²) + eps) * scale.

    x (…, D), scale (D,) or None. Returns y (…, D), and rstd (…,), the reciprocal root, which the backward takes.
    """
    x = _any_rows("x", x, None)
    if scale is not None:
        scale = as_float("scale", scale, (x.shape[-1],), x.dtype)
    y, mean, rstd = np.empty_like(x), np.empty(x.shape[:-1], x.dtype), np.empty(x.shape[:-1], x.dtype)
    _ops.layernorm(_rows(x), scale, None, _eps(eps, x.dtype), _rows(y), mean.reshape(-1), rstd.reshape(-1), True)
    return y, rstd


def rmsnorm_backward(dy, x, rstd, scale=None) -> tuple[np.ndarray, np.ndarray | None]:
    """dx (…, D) and dscale (D,) from dy and x (…, D), and rstd (…,). dscale is None without `scale`."""
    dtype = common_dtype(dy=dy, x=x)
    x = _any_rows("x", x, dtype)
    dy = as_float("dy", dy, x.shape, dtype)
    rstd = as_float("rstd", rstd, x.shape[:-1], dtype).reshape(-1)
    dscale = None
    if scale is not None:
        scale, dscale = as_float("scale", scale, x.shape[-1:], dtype), np.empty(x.shape[-1], dtype)
    dx, mean = np.empty_like(x), np.zeros_like(rstd)
    _ops.layernorm_backward(_rows(dy), _rows(x), mean, rstd, scale, _rows(dx), dscale, None, True)
    return dx, dscale


def _kind(kind) -> int:
    check(isinstance(kind, str) and kind in ACTIVATIONS, f"kind must be one of {ACTIVATIONS}, got {shown(kind)}")
    return ACTIVATIONS.index(kind)


def _flat_value(value, x: np.ndarray) -> np.ndarray | None:
    return None if value is None else as_float("value", value, x.shape, x.dtype).reshape(-1)


def activation(x, kind: str = "gelu_tanh", value=None) -> np.ndarray:
    """f(x) of every element; with `value`, of x's shape, the gated form f(x) * value (Shazeer 2020).

    kind: "gelu_tanh", "gelu_erf" (Hendrycks & Gimpel 2016), "quick_gelu" (x sigmoid(1.702 x), the same paper), "silu"
    (x sigmoid(x), Elfwing et al. 2017), "relu" or "tanh".
    """
    number, dtype = _kind(kind), common_dtype(x=x) if value is None else common_dtype(x=x, value=value)
    x = _any_rows("x", x, dtype)
    y = np.empty_like(x)
    _ops.activation(number, x.reshape(-1), _flat_value(value, x), y.reshape(-1))
    return y


@overload
def activation_backward(dy, x, kind: str = ..., value: None = ...) -> np.ndarray: ...
@overload
def activation_backward(dy, x, kind: str, value: ArrayLike) -> tuple[np.ndarray, np.ndarray]: ...
@overload
def activation_backward(dy, x, kind: str = ..., *, value: ArrayLike) -> tuple[np.ndarray, np.ndarray]: ...
def activation_backward(dy, x, kind: str = "gelu_tanh", value=None):
    """dx = dy * f'(x), all of one shape; with `value`, dx = dy * value * f'(x) and dvalue = dy * f(x)."""
    number = _kind(kind)
    dtype = common_dtype(dy=dy, x=x) if value is None else common_dtype(dy=dy, x=x, value=value)
    x = _any_rows("x", x, dtype)
    dx = as_float("dy", dy, x.shape, dtype).copy()
    dvalue = np.empty_like(x)
    dvalues = None if value is None else dvalue.reshape(-1)
    _ops.activation_backward(number, x.flatten(), _flat_value(value, x), dx.reshape(-1), dvalues)
    return dx if value is None else (dx, dvalue)


def _form(form: str) -> str:
    check(form in FORMS, f"form must be one of {FORMS}, got {shown(form)}")
    return f"gelu_{form}"


def gelu(x, form: str = "tanh") -> np.ndarray:
    """GELU of every element (Hendrycks & Gimpel 2016): "tanh" approximation or exact "erf" form."""
    return activation(x, _form(form))


def gelu_backward(dy, x, form: str = "tanh") -> np.ndarray:
    """dx = dy * gelu'(x), all of one shape."""
    return activation_backward(dy, x, _form(form))


def _some_heads(name: str, value, dtype, shape=("N", "H", "T", "dh")) -> np.ndarray:
    array = as_float(name, value, shape, dtype)
    _not_empty(**{name: array})
    return array


def _flat_heads(array: np.ndarray) -> np.ndarray:
    """(N, H, …) as (N·H, …)."""
    return array.reshape(-1, *array.shape[2:])


def attention(q, k, v) -> tuple[np.ndarray, np.ndarray]:
    """o = softmax(q kᵀ / sqrt(dh)) v in every head (Vaswani et al. 2017): q, k, v, o (N, H, T, dh).

    Returns o, and lse (N, H, T), each row's log-sum-exp of the scores, which the backward takes.
    """
    dtype = common_dtype(q=q, k=k, v=v)
    q = _some_heads("q", q, dtype)
    k, v = _some_heads("k", k, dtype, q.shape), _some_heads("v", v, dtype, q.shape)
    o, lse = np.empty_like(q), np.empty(q.shape[:-1], dtype)
    _ops.attention(*map(_flat_heads, (q, k, v, o, lse)))
    return o, lse


def attention_backward(do, q, k, v, o, lse) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """dq, dk, dv (N, H, T, dh) from do (N, H, T, dh), attention's arguments and its results."""
    dtype = common_dtype(do=do, q=q, k=k, v=v)
    q = _some_heads("q", q, dtype)
    do, k, v, o = (_some_heads(name, a, dtype, q.shape) for name, a in (("do", do), ("k", k), ("v", v), ("o", o)))
    lse = as_float("lse", lse, q.shape[:-1], dtype)
    gradients = np.empty_like(q), np.empty_like(q), np.empty_like(q)
    _ops.attention_backward(*map(_flat_heads, (do, q, k, v, o, lse, *gradients)))
    return gradients


def attend(q, k, v) -> np.ndarray:
    """o = softmax(q kᵀ / sqrt(dh)) v for one query in every head, as attention pooling takes it (Lee et al. 2019).

    q and o (N, H, dh), k and v (N, H, T, dh).
    """
    dtype = common_dtype(q=q, k=k, v=v)
    k = _some_heads("k", k, dtype)
    v, q = _some_heads("v", v, dtype, k.shape), _some_heads("q", q, dtype, (*k.shape[:2], k.shape[3]))
    o = np.empty_like(q)
    _heads.attend(*map(_flat_heads, (q, k, v, o)))
    return o


def attend_backward(do, q, k, v) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """dq (N, H, dh), dk and dv (N, H, T, dh) from do (N, H, dh) and attend's arguments."""
    dtype = common_dtype(do=do, q=q, k=k, v=v)
    k = _some_heads("k", k, dtype)
    v, q = _some_heads("v", v, dtype, k.shape), _some_heads("q", q, dtype, (*k.shape[:2], k.shape[3]))
    do = _some_heads("do", do, dtype, q.shape)
    gradients = np.empty_like(q), np.empty_like(k), np.empty_like(v)
    _heads.attend_backward(*map(_flat_heads, (do, q, k, v, *gradients)))
    return gradients


def _pairs(name: str, value, dtype) -> np.ndarray:
    array = _some_heads(name, value, dtype)
    check(array.shape[-1] % 2 == 0, f"{name}'s last axis must be even: pairs of channels turn; got shape {array.shape}")
    return array


def _turned(name: str, value, angles, back: bool) -> np.ndarray:
    dtype = common_dtype(**{name: value, "angles": angles})
    turned = _pairs(name, value, dtype).copy()
    _, H, T, dh = turned.shape
    each_head = as_array("angles", angles).ndim == 3
    angles = as_float("angles", angles, (H, T, dh // 2) if each_head else (T, dh // 2), dtype)
    tables = _heads.cosines_sines(angles.reshape(-1, T, dh // 2).astype(np.float64), dtype)
    _heads.rotate(_flat_heads(turned), *tables, back)
    return turned


def rotate(x, angles) -> np.ndarray:
    """Rotary positions (Su et al. 2021): channels j and j + dh/2 of x (N, H, T, dh) turned by an angle in radians.

    y[j] = x[j] cos - x[j + dh/2] sin and y[j + dh/2] = x[j + dh/2] cos + x[j] sin, with angles (T, dh/2) for all heads
    or (H, T, dh/2).
    """
    return _turned("x", x, angles, False)


def rotate_backward(dy, angles) -> np.ndarray:
    """dx (N, H, T, dh) from dy (N, H, T, dh): turned back by rotate's angles."""
    return _turned("dy", dy, angles, True)


def rotate_frequencies(dy, y, coordinates) -> np.ndarray:
    """The gradient (2, H, dh/2) of learned frequencies f, angles[h, t] = coordinates[t] @ f[:, h] (Heo et al. 2024).

    From dy and rotate's result y (N, H, T, dh), and coordinates (T, 2). An angle's gradient is, summed over images,
    dy[j + dh/2] y[j] - dy[j] y[j + dh/2].
    """
    dtype = common_dtype(dy=dy, y=y, coordinates=coordinates)
    y = _pairs("y", y, dtype)
    dy = _some_heads("dy", dy, dtype, y.shape)
    _, H, T, dh = y.shape
    coordinates = as_float("coordinates", coordinates, (T, 2), dtype)
    sums = np.empty((H, 2, dh // 2), dtype)
    _heads.rotate_frequencies(dy, y, coordinates, sums)
    return np.ascontiguousarray(sums.swapaxes(0, 1))


def _cross_entropy(logits, labels, label_smoothing, wanted: bool):
    logits = as_float("logits", logits, ("N", "classes"))
    _not_empty(logits=logits)
    labels = as_labels("labels", labels, *logits.shape)
    smoothing = representable("label_smoothing", label_smoothing, logits.dtype, below_one=True)
    losses = np.empty(len(logits), logits.dtype)
    dlogits = np.empty_like(logits) if wanted else None
    _ops.cross_entropy(logits, labels, smoothing, losses, dlogits)
    return losses, dlogits


def cross_entropy(logits, labels, label_smoothing: float = 0.0) -> float:
    """Mean softmax cross-entropy of logits (N, classes) against labels (N,).

    The target is (1 - s) onehot + s / classes, with s = label_smoothing.
    """
    return float(_cross_entropy(logits, labels, label_smoothing, False)[0].mean(dtype=np.float64))


def cross_entropy_backward(logits, labels, label_smoothing: float = 0.0) -> np.ndarray:
    """dlogits (N, classes) of that mean: (softmax(logits) - target) / N."""
    return _cross_entropy(logits, labels, label_smoothing, True)[1]


def _elementwise(function: int, x) -> np.ndarray:
    x = _any_rows("x", x, None)
    y = np.empty_like(x)
    _ops.apply(function, x.reshape(-1), y.reshape(-1))
    return y


def exp(x) -> np.ndarray:
    """e^x of every element; 0 below the smallest normal number, not above e^88.37 (float32) or e^709.4 (float64).

    Without fused multiply-adds (the instruction set "portable") very small results are right to within that smallest
    number alone.
    """
    return _elementwise(0, x)


def tanh(x) -> np.ndarray:
    """Hyperbolic tangent of every element."""
    return _elementwise(1, x)


def erf(x) -> np.ndarray:
    """Error function of every element."""
    return _elementwise(2, x)
