"""The image tower of CLIP and of MetaCLIP 2 of transformers (Radford et al. 2021, arXiv:2103.00020).

CLIPVisionModel                        the norm of the class token
CLIPVisionModelWithProjection          that, projected without a bias: a head of `projection_dim` outputs
CLIPModel                              the same of a model of pictures and text, whose text tower is read over
CLIPForImageClassification             the mean over the patches, with no norm behind the blocks
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ..model.config import ViTConfig
from .family import Given, Row
from .hf import HfFamily, label_keys, linear, norm, unused
from .transform import CONVOLUTION, SAME

DEFAULTS = {
    "num_attention_heads": 12, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5, "image_size": 224,
}  # fmt: skip


class HfClip(HfFamily):
    name = "hf_clip"
    model_types = ("clip_vision_model", "clip")
    defaults = DEFAULTS
    tower = "vision_config"
    processor = "CLIPImageProcessor"
    marks: tuple[str, ...] = (
        "embeddings.class_embedding",
        "pre_layrnorm.weight",
        "embeddings.position_embedding.weight",
    )
    prefixes = ("vision_model.",)
    base_prefix = "vision_model."
    ignored = (r"embeddings\.position_ids", r"text_model\.", r"text_projection\.", r"logit_(scale|bias)$")
    patch_embedding = "embeddings.patch_embedding.weight"
    block = "encoder.layers.{i}."
    prefix = "CLIP"  # of the classes' names

    def headed(self, config: ViTConfig) -> bool:
        """Published files of every class have the prefix."""
        return True

    def style(self, given: Given) -> frozenset[str]:
        return frozenset({"norm"} if given.has("post_layernorm.weight") else ())

    def style_for(self, config: ViTConfig) -> frozenset[str]:
        return frozenset({"norm"})

    def config(self, given: Given) -> ViTConfig:
        keys = self.keys(given)
        fields = self.common(given, keys)
        classifies = given.has("classifier.weight")
        return ViTConfig(
            **fields,
            image_size=keys.image_size(
                given.shape("embeddings.position_embedding.weight", 2)[0] - 1, fields["patch_size"], square=True
            ),
            hidden=given.shape("encoder.layers.0.mlp.fc1.weight", 2)[0],
            classes=self.classes(given, "classifier.weight", "visual_projection.weight"),
            class_token=1,
            pool="mean" if classifies else "cls",
            patch_bias=False,
            pre_norm=True,
            final_norm=not classifies,
            head_bias=not given.has("visual_projection.weight"),
        )

    def table(self, config: ViTConfig, style: frozenset[str]) -> Iterable[Row]:
        block, mine, D = "encoder.layers.{i}.", "blocks.{i}.", config.width
        last = norm("post_layernorm", "norm")
        if not config.final_norm:
            last = [unused(row.theirs, D) for row in last] if "norm" in style else []
        return [
            Row("embeddings.class_embedding", "cls_token", SAME),
            Row("embeddings.patch_embedding.weight", "patch_embed.weight", CONVOLUTION),
            Row("embeddings.position_embedding.weight", "pos_embed", SAME),
            *norm("pre_layrnorm", "norm_pre"),
            *linear(f"{block}self_attn.q_proj", f"{mine}attn.q"),
            *linear(f"{block}self_attn.k_proj", f"{mine}attn.k"),
            *linear(f"{block}self_attn.v_proj", f"{mine}attn.v"),
            *linear(f"{block}self_attn.out_proj", f"{mine}attn.proj"),
            *linear(f"{block}mlp.fc1", f"{mine}mlp.fc1"),
            *linear(f"{block}mlp.fc2", f"{mine}mlp.fc2"),
            *norm(f"{block}layer_norm1", f"{mine}norm1"),
            *norm(f"{block}layer_norm2", f"{mine}norm2"),
            *last,
            *linear("visual_projection" if config.final_norm else "classifier", "head"),
        ]

    def described(self, config: ViTConfig) -> dict[str, Any]:
        vision, whole = self.model_types
        own = {**self.common_json(config), "intermediate_size": config.hidden}
        if not config.final_norm:
            json = {"architectures": [f"{self.prefix}ForImageClassification"], "model_type": whole}
            return {**json, "vision_config": {"model_type": vision, **own}, **label_keys(config.classes)}
        kind = "VisionModelWithProjection" if config.classes else "VisionModel"
        projection = {"projection_dim": config.classes} if config.classes else {}
        return {"architectures": [f"{self.prefix}{kind}"], "model_type": vision, **own, **projection}


class HfMetaClip2(HfClip):
    name = "hf_metaclip_2"
    model_types = ("metaclip_2_vision_model", "metaclip_2")
    marks = ()  # those of CLIP
    prefix = "MetaClip2"


FAMILY = HfClip()
METACLIP_2 = HfMetaClip2()
