"""torchvision's `VisionTransformer`: exact GELU, a class token, q, k and v packed; its file says no number of heads."""

from __future__ import annotations

import math

from ..base.errors import check
from ..model.config import ViTConfig
from .family import Family, Row
from .reading import Model, read
from .transform import CONVOLUTION, LINEAR, SAME, TOKEN, TOKENS

HEADS = {768: 12, 1024: 16, 1280: 16}  # of the published models by width: vit_b, vit_l, vit_h

BLOCK = "encoder.layers.encoder_layer_{i}"
BLOCK_ROWS = [
    Row(f"{BLOCK}.ln_1.weight", "blocks.{i}.norm1.weight", SAME),
    Row(f"{BLOCK}.ln_1.bias", "blocks.{i}.norm1.bias", SAME),
    *(Row(f"{BLOCK}.self_attention.in_proj_weight", f"blocks.{{i}}.attn.{x}.weight", LINEAR) for x in "qkv"),
    *(Row(f"{BLOCK}.self_attention.in_proj_bias", f"blocks.{{i}}.attn.{x}.bias", SAME) for x in "qkv"),
    Row(f"{BLOCK}.self_attention.out_proj.weight", "blocks.{i}.attn.proj.weight", LINEAR),
    Row(f"{BLOCK}.self_attention.out_proj.bias", "blocks.{i}.attn.proj.bias", SAME),
    Row(f"{BLOCK}.ln_2.weight", "blocks.{i}.norm2.weight", SAME),
    Row(f"{BLOCK}.ln_2.bias", "blocks.{i}.norm2.bias", SAME),
    Row(f"{BLOCK}.mlp.0.weight", "blocks.{i}.mlp.fc1.weight", LINEAR),
    Row(f"{BLOCK}.mlp.0.bias", "blocks.{i}.mlp.fc1.bias", SAME),
    Row(f"{BLOCK}.mlp.3.weight", "blocks.{i}.mlp.fc2.weight", LINEAR),
    Row(f"{BLOCK}.mlp.3.bias", "blocks.{i}.mlp.fc2.bias", SAME),
]


class Torchvision(Family):
    """torchvision.models.vision_transformer.VisionTransformer."""

    name = "torchvision"
    marks = ("class_token", "conv_proj.weight", "encoder.pos_embedding")
    prefixes = ("module.",)
    aliases = ((r"\.mlp\.linear_1\.", ".mlp.0."), (r"\.mlp\.linear_2\.", ".mlp.3."))  # of its first version
    position_resampling = "bicubic corners"

    def config(self, given):
        width, channels, down, across = given.shape("conv_proj.weight", 4)
        side = math.isqrt(given.shape("encoder.pos_embedding", 3)[1] - 1)
        heads = given.num_heads or HEADS.get(width)
        if heads is None:
            raise ValueError("the file does not say how many attention heads the model has: give num_heads=")
        return ViTConfig(
            image_size=(side * down, side * across),
            patch_size=(down, across),
            channels=channels,
            width=width,
            depth=given.blocks(f"{BLOCK}."),
            heads=heads,
            hidden=given.shape("encoder.layers.encoder_layer_0.mlp.0.weight", 2)[0],
            classes=given.shape("heads.head.weight", 2)[0] if given.has("heads.head.weight") else 0,
            activation="gelu_erf",
            pre_logits=given.shape("heads.pre_logits.weight", 2)[0] if given.has("heads.pre_logits.weight") else 0,
        )

    def preprocessing(self, given):
        return dict(  # of the first published weights, "IMAGENET1K_V1"
            resize_size=256, size=224, interpolation="bilinear", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225),
        )  # fmt: skip

    def rows(self, config, style=frozenset()):
        head = ["pre_logits"] * bool(config.pre_logits) + ["head"] * bool(config.classes)
        return [
            Row("class_token", "cls_token", TOKEN),
            Row("conv_proj.weight", "patch_embed.weight", CONVOLUTION),
            Row("conv_proj.bias", "patch_embed.bias", SAME),
            Row("encoder.pos_embedding", "pos_embed", TOKENS),
            *BLOCK_ROWS,
            Row("encoder.ln.weight", "norm.weight", SAME),
            Row("encoder.ln.bias", "norm.bias", SAME),
            *(Row(f"heads.{name}.weight", f"{name}.weight", LINEAR) for name in head),
            *(Row(f"heads.{name}.bias", f"{name}.bias", SAME) for name in head),
        ]


def from_torchvision(module) -> Model:
    """The configuration and the weights of a torchvision module `VisionTransformer`.

    Raises
    ------
    TypeError
        It is none.
    ValueError
        It has a part that cvit does not compute, such as a convolutional stem; the message names it.
    """
    if type(module).__name__ != "VisionTransformer" or not hasattr(module, "conv_proj"):
        raise TypeError(f"module must be torchvision's VisionTransformer, got {type(module).__name__}")
    check(
        not list(module.conv_proj.children()), "the module has a part that cvit does not compute: a convolutional stem"
    )
    tensors = {name: tensor.detach() for name, tensor in module.state_dict().items()}
    layers = list(module.encoder.layers)
    heads = layers[0].num_heads
    found = read(tensors, [Torchvision()], num_heads=heads)
    norms = {part.eps for part in module.modules() if type(part).__name__ == "LayerNorm"}
    check(len(norms) == 1, f"norms of several eps: {sorted(norms)}")
    (eps,) = norms
    fields = {name: getattr(found.config, name) for name in found.config.__dataclass_fields__}
    return found._replace(config=ViTConfig(**{**fields, "eps": eps}))
