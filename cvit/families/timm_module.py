"""The configuration of a timm module, read off the module itself: its classes' names and their attributes.

So a model of any depth, width or options is known, whatever its name; timm itself is not imported.
"""

from __future__ import annotations

from typing import Any

from ..base.errors import check
from ..model.config import ViTConfig
from ..model.rope import Rope
from .family import unknown_part
from .reading import Model, configuration, given, read, tidy
from .timm_eva import TimmEva
from .timm_vit import POOLS, TimmViT

ACTIVATIONS = {  # by the class of the module
    "GELU": "gelu_erf", "GELUTanh": "gelu_tanh", "QuickGELU": "quick_gelu", "SiLU": "silu", "Swish": "silu",
    "ReLU": "relu", "Tanh": "tanh", "QuickGELUTorch": "quick_gelu",
}  # fmt: skip
BLOCKS = {  # by the class of a block
    "Block": "pre", "ResPostBlock": "post", "ParallelScalingBlock": "parallel", "ParallelThingsBlock": "pairs",
    "EvaBlock": "pre", "EvaBlockPostNorm": "post",
}  # fmt: skip
NORMS = {"LayerNorm": "layer", "RmsNorm": "rms", "LayerNormFp32": "layer", "RmsNormFp32": "rms"}
KNOWN = {  # classes of all other parts; what only training has is not computed
    "PatchEmbed", "Attention", "EvaAttention", "AttentionRope", "AttentionPoolLatent", "Mlp", "GluMlp", "SwiGLU",
    "LayerScale", "RotaryEmbeddingCat", "RotaryEmbeddingMixed", "RotaryEmbeddingDinoV3", "Linear", "Conv2d", "Identity",
    "Dropout", "DropPath", "PatchDropout", "PatchDropoutWithIndices", "Sequential", "ModuleList", "ModuleDict",
    *ACTIVATIONS, *BLOCKS, *NORMS,
}  # fmt: skip
FAMILIES = (TimmViT(), TimmEva())


def from_timm(module) -> Model:
    """The configuration and the weights of a timm module, `VisionTransformer`, `VisionTransformerDistilled` or `Eva`.

    Raises
    ------
    TypeError
        It is none of these.
    ValueError
        It has a part that cvit does not compute; the message names it.
    """
    config, style = describe(module)
    tensors = {name: tensor.detach() for name, tensor in module.state_dict().items()}
    return read(tensors, [family_of(module)], config=config, style=style)


def family_of(module):
    """The family of a timm module, by its class."""
    names = [one.__name__ for one in type(module).__mro__]
    # A subclass with a part of its own, say relative positions, is not what it descends from.
    found = next((family for family in FAMILIES if names[0] in family.of_module), None)
    if found is None:
        known = ", ".join(name for family in FAMILIES for name in family.of_module)
        raise TypeError(f"module must be one of timm's {known}, got {names[0]}")
    return found


def describe(module) -> tuple[ViTConfig, frozenset[str]]:
    """A module's configuration, and the style of its names."""
    shapes = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    reason = unknown_part(shapes)
    check(reason is None, f"the module has a part that cvit does not compute: {reason}")
    family = family_of(module)
    for name, part in module.named_modules():
        kind = type(part).__name__
        check(part is module or kind in KNOWN, f"the module has a part that cvit does not compute: {kind} ({name})")
    rope = getattr(module, "rope", None)
    json = {"model_args": {"use_rot_pos_emb": rope is not None}}  # which is read below
    facts, _ = given(family, shapes, json, _heads(module), tuple(module.patch_embed.img_size))
    config = configuration(family, facts)
    fields: dict[str, Any] = dict(_norms(module), activation=_activation(module), block=_block(module))
    fields |= dict(pool=_pool(module, config), class_token=config.class_tokens)
    if config.pool == "map":
        heads = module.attn_pool.num_heads
        fields["pool_heads"] = 0 if heads == config.heads else heads
        fields["pool_prefix"] = bool(getattr(module, "pool_include_prefix", type(module).__name__ == "Eva"))
    style = set(family.style(facts))
    if rope is not None:
        fields["rope"], half = _rope(rope)
        if not half:
            style.add("neighbours")
    pos_embed = getattr(module, "pos_embed", None)
    if pos_embed is not None and config.prefix_tokens:
        fields["pos_tokens"] = "patches" if module.no_embed_class else "all"
    kept = {name: getattr(config, name) for name in config.__dataclass_fields__ if name not in fields}
    return tidy(ViTConfig(**kept, **fields)), frozenset(style)


def _heads(module) -> int:
    found = {part.num_heads for name, part in module.blocks.named_modules() if hasattr(part, "num_heads")}
    check(len(found) == 1, f"all blocks must have as many attention heads, got {sorted(found)}")
    return found.pop()


def _block(module) -> str:
    kinds = {type(block).__name__ for block in module.blocks}
    check(len(kinds) == 1, f"all blocks must be of one kind, got {sorted(kinds)}")
    (kind,) = kinds
    if kind == "ParallelThingsBlock":
        check(module.blocks[0].num_parallel == 2, "a block of more than two attentions side by side")
    return BLOCKS[kind]


def _norms(module) -> dict[str, Any]:
    """The kind and eps of every norm of the model."""
    found = {}
    for name, part in module.named_modules():
        if type(part).__name__ in NORMS:
            found[NORMS[type(part).__name__], float(part.eps)] = name
    check(len(found) == 1, f"norms of several kinds or eps: {found}")
    ((norm, eps),) = found
    return dict(norm=norm, eps=eps)


def _activation(module) -> str:
    found = {}
    for name, part in module.named_modules():
        last = name.rpartition(".")[2]
        if last in ("act", "mlp_act"):
            kind = type(part).__name__
            check(kind in ACTIVATIONS, f"the module has an activation that cvit does not compute: {kind} ({name})")
            found[ACTIVATIONS[kind]] = name
        if type(part).__name__ == "GluMlp":
            check(not part.gate_last, f"the gate of {name} is the second half of fc1: cvit reads the first")
    check(len(found) == 1, f"activations of several kinds: {found}")
    return next(iter(found))


def _pool(module, config: ViTConfig) -> str:
    pool = module.global_pool
    check(pool in POOLS, f"the module has a part that cvit does not compute: pooling {pool!r}")
    whole = getattr(module, "pool_include_prefix", False)
    if config.dist_head:
        return "cls"
    return "mean_all" if pool == "avg" and whole else POOLS[pool]


def _rope(rope) -> tuple[Rope, bool]:
    """Rotary positions, and whether they turn channels half a head apart."""
    kind = type(rope).__name__
    columns_first = rope.grid_indexing == "xy" if hasattr(rope, "grid_indexing") else False
    if kind == "RotaryEmbeddingMixed":
        return Rope("mixed", theta=rope.temperature, columns_first=columns_first), False
    if kind == "RotaryEmbeddingDinoV3":
        check(
            rope.normalize_coords == "separate" and rope.min_period is None,
            "the module has a part that cvit does not compute: rotary positions normalised together or with periods",
        )
        found = Rope("centred", theta=rope.temperature, offset=rope.grid_offset, columns_first=columns_first)
        return found, rope.rotate_half
    check(
        kind == "RotaryEmbeddingCat" and rope.grid_type == "index" and not rope.in_pixels,
        f"the module has a part that cvit does not compute: rotary positions of kind {kind}",
    )
    reference = rope.ref_feat_shape and tuple(rope.ref_feat_shape)
    found = Rope("axial", rope.temperature, rope.grid_offset, reference, columns_first)
    return found, rope.rotate_half
