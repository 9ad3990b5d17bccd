"""Whether two configurations are of one model: fields that have no effect in it do not count."""

from __future__ import annotations

import dataclasses
from typing import Any

from ..model.config import ViTConfig


def effective(config: ViTConfig) -> dict[str, Any]:
    """The fields of a configuration with what a None stands for, and None for those that have no effect."""
    fields = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    fields["qkv_bias"] = config.qkv_biases
    fields["class_token"] = config.class_tokens
    fields["layer_scale"] = tuple(one is not None for one in config.layer_scales)
    for name in ("patch", "proj", "mlp"):
        fields[f"{name}_bias"] = config.has_bias(name)
    fields["head_bias"] = config.has_bias("head") if config.classes or config.pre_logits else None
    fields["bias"] = None
    if not config.pos_rows or not config.registers:
        fields["pos_tokens"] = "none" if not config.pos_rows else config.pos_prefix
    pools = config.pool == "map"
    fields["pool_heads"] = config.pool_heads or config.heads if pools else None
    fields["pool_hidden"] = (config.pool_hidden or config.hidden) if pools else None
    fields["pool_prefix"] = config.pool_prefix if pools and config.prefix_tokens else None
    fields["pool_query"] = config.pool_query if pools else None
    fields["pool_bias"] = (config.has_bias("pool"), config.bias) if pools else None
    fields["pre_logits_activation"] = config.pre_logits_activation if config.pre_logits else None
    if not config.prefix_tokens and config.pool == "mean_all":
        fields["pool"] = "mean"
    return fields


def differences(one: ViTConfig, other: ViTConfig) -> list[str]:
    """The names of fields in which two configurations' models differ."""
    a, b = effective(one), effective(other)
    return [name for name in a if a[name] != b[name]]
