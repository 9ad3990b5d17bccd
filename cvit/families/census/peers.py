"""The other libraries, imported beside a CPU build of torch, and modules of theirs with every parameter drawn."""

from __future__ import annotations

from typing import Any

import torch

_declared: list[Any] = []  # a library that is collected takes its names with it


def declare_torchvision_operators() -> None:
    """timm and transformers import torchvision, whose operators do not load beside a CPU build of torch: their names
    are enough. Nothing happens where torchvision, or an earlier call, has declared them.
    """
    names = ["nms", "qnms", "roi_align", "roi_pool", "ps_roi_align", "ps_roi_pool", "deform_conv2d"]
    names += [f"_{name}_backward" for name in names[2:]]
    try:
        library = torch.library.Library("torchvision", "DEF")
        for name in names:
            two = "Tensor boxes, Tensor scores, float threshold" if name.endswith("nms") else "Tensor input"
            library.define(f"{name}({two}) -> Tensor")
    except RuntimeError:
        return
    _declared.append(library)


def draw(module: Any, seed: int = 0) -> Any:
    """The module with every parameter drawn, no scale or bias near 0 or 1 throughout, in numbers that float32 holds."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in module.named_parameters():
            drawn = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
            fan_in = tensor[0].numel() if tensor.ndim > 1 and len(tensor) else 1
            matrix = name.endswith("weight") and tensor.ndim > 1
            scale = fan_in**-0.5 if matrix else 0.3
            centre = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            tensor.copy_((scale * drawn + centre).float())
    return module


declare_torchvision_operators()
