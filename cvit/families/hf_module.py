"""A module of transformers in memory: its class and its configuration say what it is, its tensors have their own names.

torch and transformers are not imported.
"""

from __future__ import annotations

from typing import Any

from .hf_all import HF_FAMILIES
from .reading import Model, read


def module_json(module: Any) -> dict[str, Any]:
    """What config.json would say of a module."""
    return {**module.config.to_dict(), "architectures": [type(module).__name__]}


def from_hf(module: Any, *, image_size: int | tuple[int, int] | None = None) -> Model:
    """The configuration and the weights of a module of transformers, at its own or another image size.

    Raises
    ------
    TypeError
        It is no model of transformers.
    ValueError
        It is of a class that cvit does not know or has a part that cvit does not compute; the message names it.
    """
    if not all(hasattr(module, name) for name in ("config", "state_dict")) or not hasattr(module.config, "to_dict"):
        raise TypeError(f"module must be a model of transformers, got {type(module).__name__}")
    json = module_json(module)
    tensors = {name: tensor.detach() for name, tensor in module.state_dict().items()}
    return read(tensors, HF_FAMILIES, json, image_size=image_size)
