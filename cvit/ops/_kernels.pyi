import numpy as np

def patches(x: np.ndarray, patch: int, out: np.ndarray) -> None: ...
def patches_backward(dout: np.ndarray, patch: int, dx: np.ndarray) -> None: ...
def linear(x: np.ndarray, w: np.ndarray, bias: np.ndarray | None, y: np.ndarray) -> None: ...
def linear_backward(
    dy: np.ndarray, x: np.ndarray, w: np.ndarray, dx: np.ndarray, dw: np.ndarray, db: np.ndarray
) -> None: ...
def layernorm(
    x: np.ndarray,
    scale: np.ndarray | None,
    shift: np.ndarray | None,
    eps: float,
    y: np.ndarray,
    mean: np.ndarray,
    rstd: np.ndarray,
    rms: bool = False,
) -> None: ...
def layernorm_backward(
    dy: np.ndarray,
    x: np.ndarray,
    mean: np.ndarray,
    rstd: np.ndarray,
    scale: np.ndarray | None,
    dx: np.ndarray,
    dscale: np.ndarray | None,
    dshift: np.ndarray | None,
    rms: bool = False,
) -> None: ...
def activation(kind: int, x: np.ndarray, value: np.ndarray | None, y: np.ndarray) -> None: ...
def activation_backward(
    kind: int, x: np.ndarray, value: np.ndarray | None, dy: np.ndarray, dvalue: np.ndarray | None
) -> None: ...
def attention(q: np.ndarray, k: np.ndarray, v: np.ndarray, o: np.ndarray, lse: np.ndarray) -> None: ...
def attention_backward(
    d_o: np.ndarray,
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    o: np.ndarray,
    lse: np.ndarray,
    dq: np.ndarray,
    dk: np.ndarray,
    dv: np.ndarray,
) -> None: ...
def drop(
    x: np.ndarray,
    add: np.ndarray | None,
    y: np.ndarray,
    seed: int,
    place: int,
    first: int,
    path: float,
    rate: float,
) -> None: ...
def cross_entropy(
    logits: np.ndarray, labels: np.ndarray, smoothing: float, losses: np.ndarray, dlogits: np.ndarray | None
) -> None: ...
def apply(function: int, x: np.ndarray, y: np.ndarray) -> None: ...
