import numpy as np

RUN: np.dtype

def sgd(
    w: np.ndarray,
    g: np.ndarray,
    velocity: np.ndarray | None,
    lr: float,
    momentum: float,
    nesterov: bool,
    weight_decay: float,
    runs: np.ndarray,
    grad_scale: float,
    precision: str | None = None,
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
    runs: np.ndarray,
    grad_scale: float,
    precision: str | None = None,
) -> None: ...
def average(e: np.ndarray, w: np.ndarray, rate: float, runs: np.ndarray, precision: str | None = None) -> None: ...
def sum_of_squares(g: np.ndarray, runs: np.ndarray, precision: str | None = None) -> float: ...
def run_of(start: int, stop: int, rate: float = 1.0, decay: bool = False) -> np.ndarray: ...
