"""What an original computes and what the engine makes of it: `judge` gives a `Verdict`.

"equal" means that in float32, original and engine alike, every block's tokens, the tokens behind the last norm, the
features and the logits are within `BOUND` of the largest, each gradient of a cross-entropy loss is within
`GRADIENT_BOUND`, and the weights come back bit for bit from what is written.
"""

from __future__ import annotations

import abc
import dataclasses
import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch

from ...model.config import ViTConfig
from ...model.layout import Layout
from ...model.vit import ViT
from ..reading import Model, read

BOUND = 1e-5
GRADIENT_BOUND = 1e-4
# A tensor's gradient is measured by its own largest number, or by this part of the whole gradient's: that of a key bias
# is zero but for rounding.
FLOOR = 1e-2
REFUSALS = ("a part that cvit does not compute: ", "does not compute: ")

Arrays = dict[str, np.ndarray]


class Verdict(NamedTuple):
    """Of one name: "equal", "refused" with the part, or "wrong" with what is."""

    group: str
    name: str
    verdict: str
    reason: str = ""
    error: float = 0.0  # the largest, as a part of the largest number
    gradient: float | None = None  # the same of the gradient; None without a head


@dataclasses.dataclass
class Candidate(abc.ABC):
    """An original: its library's module, and how it is read, run and written.

    Attributes
    ----------
    group, name : str
        The row of the table, and the name in it.
    module : the original, in float32; None before `load`
    """

    group: str
    name: str
    module: Any = dataclasses.field(default=None, init=False, repr=False)

    @abc.abstractmethod
    def load(self) -> Model:
        """Build the original and read it; a `ValueError` names the part that cvit does not compute."""

    @abc.abstractmethod
    def outputs(self, config: ViTConfig, x: torch.Tensor) -> Arrays:
        """What it computes of images, by "tokens", "features", "logits" and "block 0", …; whatever it gives."""

    def logits(self, config: ViTConfig, x: torch.Tensor) -> torch.Tensor:
        """The logits of images (N, C, H, W), with their graph."""
        return self.module(x)

    def tokens_are_normed(self, config: ViTConfig) -> bool:
        """Whether its "tokens" are those behind the last norm."""
        return True

    @abc.abstractmethod
    def returned(self, model: Model) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
        """(what, wanted, got) of what is written and read again."""


def judge(candidate: Candidate) -> Verdict:
    """Build, read, compare, write and read again."""
    try:
        model = candidate.load()
    except ValueError as error:
        for words in REFUSALS:
            if words in str(error):
                return Verdict(candidate.group, candidate.name, "refused", str(error).partition(words)[2])
        return Verdict(candidate.group, candidate.name, "wrong", f"is not read: {error}")
    except Exception as error:  # whatever it is, the other names are still asked
        return Verdict(candidate.group, candidate.name, "wrong", f"is not read: {type(error).__name__}: {error}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            errors = _forward(candidate, model)
            gradients = _gradients(candidate, model) if model.config.classes else {}
            changed = [what for what, wanted, got in candidate.returned(model) if not _same(wanted, got)]
    except Exception as error:
        return Verdict(candidate.group, candidate.name, "wrong", f"{type(error).__name__}: {error}")
    finally:
        candidate.module = None
    wrong = [f"{name} off by {error:.1e}" for name, error in errors.items() if not error <= BOUND]
    wrong += [
        f"gradient of {name} off by {error:.1e}" for name, error in gradients.items() if not error <= GRADIENT_BOUND
    ]
    wrong += [f"{what} is written differently" for what in changed]
    return Verdict(
        candidate.group, candidate.name, "wrong" if wrong else "equal", "; ".join(wrong[:4]), max(errors.values()),
        max(gradients.values()) if gradients else None,
    )  # fmt: skip


def images(config: ViTConfig, number: int = 2) -> np.ndarray:
    """Random images of a configuration, float32."""
    drawn = np.random.default_rng(1).standard_normal((number, config.channels, *config.image_size))
    return drawn.astype(np.float32)


def apart(got: np.ndarray, wanted: np.ndarray, size: float = 0.0) -> float:
    """The largest difference, as a part of the largest number wanted or of `size`; infinite where shapes differ."""
    if got.shape != wanted.shape or not np.isfinite(got).all():
        return float("inf")
    size = max(size, float(np.abs(wanted).max(initial=0.0)))
    return float(np.abs(got.astype(np.float64) - wanted).max(initial=0.0)) / (size or 1.0)


def _forward(candidate: Candidate, model: Model) -> dict[str, float]:
    config, x = model.config, images(model.config)
    with torch.no_grad():
        wanted = candidate.outputs(config, torch.from_numpy(x))
    ours = ViT(config, model.weights)
    got = {f"block {i}": tokens for i, tokens in enumerate(ours.tokens(x, layers=range(config.depth)))}
    got["tokens"] = ours.tokens(x, norm=candidate.tokens_are_normed(config))
    got["features"] = ours.features(x)
    if config.classes:
        got["logits"] = ours.forward(x)
    lacking = {f"block {i}" for i in range(config.depth)} | {"logits" if config.classes else "features"}
    if not lacking <= wanted.keys():
        raise ValueError(f"the original did not give {sorted(lacking - wanted.keys())}")
    return {name: apart(got[name], value) for name, value in wanted.items()}


def _gradients(candidate: Candidate, model: Model) -> dict[str, float]:
    """How far the gradient of each tensor is off, in train mode, through the table of names."""
    config, x = model.config, images(model.config, 3)
    y = np.arange(3) * 2 % config.classes
    module = candidate.module
    module.train().zero_grad()
    torch.nn.functional.cross_entropy(candidate.logits(config, torch.from_numpy(x)), torch.from_numpy(y)).backward()
    module.eval()
    given = {name: tensor.grad for name, tensor in module.named_parameters()}
    theirs = {
        name: torch.zeros_like(tensor) if given.get(name) is None else given[name]
        for name, tensor in module.state_dict().items()
    }
    wanted = read(theirs, [model.family], config=config, style=model.style, strict=False).weights
    got = ViT(config, model.weights).loss_and_grad(x, y)[1]
    size, layout = FLOOR * float(np.abs(wanted).max()), Layout.of(config)
    expected = layout.views(wanted)
    return {name: apart(tensor, expected[name], size) for name, tensor in layout.views(got).items()}


def _same(one: np.ndarray, other: np.ndarray) -> bool:
    return one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()


def hooked(modules: Any, run: Any) -> tuple[Any, list[np.ndarray]]:
    """What `run()` gives, and the output of each of these modules in it."""
    found: dict[int, np.ndarray] = {}

    def keep(number):
        def hook(module, given, result):
            found[number] = (result[0] if isinstance(result, tuple) else result).detach().numpy()

        return hook

    handles = [module.register_forward_hook(keep(i)) for i, module in enumerate(modules)]
    try:
        result = run()
    finally:
        for handle in handles:
            handle.remove()
    return result, [found[i] for i in sorted(found)]


def fed(modules: Any, run: Any) -> tuple[Any, list[np.ndarray]]:
    """What `run()` gives, and the input of each of these modules in it."""
    found: list[np.ndarray] = []
    handles = [
        module.register_forward_pre_hook(lambda m, given: found.append(given[0].detach().numpy())) for module in modules
    ]
    try:
        result = run()
    finally:
        for handle in handles:
            handle.remove()
    return result, found
