import numpy as np

def sgd(
    w: np.ndarray,
    g: np.ndarray,
    velocity: np.ndarray | None,
    lr: float,
    momentum: float,
    nesterov: bool,
    weight_decay: float,
    decay_runs: np.ndarray,
    grad_scale: float,
) -> None: ...
def adamw(
    w: np.ndarray,
    g: np.ndarray,
    m: np.ndarray,
    v: np.ndarray,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    step: int,
    decay_runs: np.ndarray,
    grad_scale: float,
) -> None: ...
def sum_of_squares(g: np.ndarray) -> float: ...
