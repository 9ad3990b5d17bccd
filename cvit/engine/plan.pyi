from collections.abc import Iterator
from typing import Literal

import numpy as np
from numpy.typing import DTypeLike

from .building import Building
from .program import Program

class Plan(Building):
    def __init__(
        self,
        program: Program,
        batch: int,
        dtype: DTypeLike,
        mode: Literal["train", "infer", "tokens"],
        frozen: bool = False,
        owner: Plan | None = None,
        checkpoint: bool = False,
        dry: bool = False,
        fused: bool = True,
        hints: bool = True,
        kernels: int = 0,
    ) -> None: ...
    @property
    def buffers(self) -> dict[str, int]: ...
    @property
    def whole_blocks(self) -> bool: ...
    @property
    def idle(self) -> bool: ...
    @idle.setter
    def idle(self, value: bool) -> None: ...
    def stages(self, kind: str | tuple[int, int] | None = None) -> list[list[tuple[str, int, int]]]: ...
    def threads(self) -> int: ...
    def freeze(self, weights: np.ndarray) -> None: ...
    def forward(self, weights: np.ndarray, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]: ...
    def logits(self) -> np.ndarray: ...
    def features(self) -> np.ndarray: ...
    def tokens(self, weights: np.ndarray, images: np.ndarray) -> np.ndarray: ...
    def layers(
        self, weights: np.ndarray, images: np.ndarray, layers: list[int], norm: bool
    ) -> Iterator[np.ndarray]: ...
    def embed(self, weights: np.ndarray, images: np.ndarray) -> np.ndarray: ...
    def blocks(self, weights: np.ndarray, tokens: np.ndarray) -> np.ndarray: ...
    def run_training(
        self,
        weights: np.ndarray,
        images: np.ndarray,
        labels: np.ndarray,
        smoothing: float,
        grad: np.ndarray,
        sample_weight: np.ndarray | None = None,
        drop: tuple[float, float, int, int] = ...,
    ) -> float: ...
