"""ViT of transformers: ViTModel, with its pooler or without, and ViTForImageClassification (Dosovitskiy et al. 2021).

The pooler is a linear layer and an activation behind the class token: `pre_logits` of a model without a head. What is
written without one is for ViTModel.from_pretrained(folder, add_pooling_layer=False): no key of config.json says so.
DeiT, MSN, MAE, I-JEPA and Pixio have the same names, in files of their own.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ..base.errors import check
from ..model.config import ViTConfig
from .family import Given, Row
from .hf import WRITTEN, HfFamily, class_tokens, label_keys, linear, norm
from .transform import CONVOLUTION, SAME, TOKEN, TOKENS

DEFAULTS = {"num_attention_heads": 12, "hidden_act": "gelu", "layer_norm_eps": 1e-12, "image_size": 224}
POOLING = {**DEFAULTS, "pooler_act": "tanh"}


class HfViT(HfFamily):
    name = "hf_vit"
    model_types = ("vit",)
    defaults = POOLING
    processor = "ViTImageProcessor"
    marks: tuple[str, ...] = (
        "embeddings.cls_token", "encoder.layer.0.attention.attention.query.weight",
        "encoder.layer.0.layernorm_before.weight",
    )  # fmt: skip
    prefixes = ("vit.",)
    base_prefix = "vit."
    aliases: tuple[tuple[str, str], ...] = (
        (r"^layers\.", "encoder.layer."),
        (r"\.attention\.q_proj\.", ".attention.attention.query."),
        (r"\.attention\.k_proj\.", ".attention.attention.key."),
        (r"\.attention\.v_proj\.", ".attention.attention.value."),
        (r"\.attention\.o_proj\.", ".attention.output.dense."),
        (r"\.mlp\.fc1\.", ".intermediate.dense."),
        (r"\.mlp\.fc2\.", ".output.dense."),
    )
    ignored = (r"decoder\.", r"embeddings\.mask_token")
    norms = ("layernorm_before", "layernorm_after")
    poolers = True  # whether the model without a head may have one
    architectures = ("ViTModel", "ViTForImageClassification")  # without a head, with one

    def spelling(self, names: Iterable[str]) -> dict[str, str]:
        """A classifier's file may have a pooler that its class reads over."""
        spelling = super().spelling(names)
        if any("classifier." in name for name in spelling.values()):
            spelling = {name: ours for name, ours in spelling.items() if not ours.startswith("pooler.")}
        return spelling

    def config(self, given: Given) -> ViTConfig:
        keys = self.keys(given)
        fields = self.common(given, keys)
        tokens = given.shape("embeddings.cls_token", 3)[1] if given.has("embeddings.cls_token") else 0
        distilled = given.has("embeddings.distillation_token")
        rows = given.shape("embeddings.position_embeddings", 3)[1]
        pooled = self.poolers and given.has("pooler.dense.weight")
        return ViTConfig(
            **fields,
            image_size=keys.image_size(rows - tokens - distilled, fields["patch_size"], square=self.square),
            hidden=given.shape("encoder.layer.0.intermediate.dense.weight", 2)[0],
            classes=self.classes(given, "classifier.weight", "cls_classifier.weight"),
            class_token=tokens,
            dist_token=distilled,
            dist_head=given.has("distillation_classifier.weight"),
            pool="cls" if tokens else "mean",
            qkv_bias=given.has("encoder.layer.0.attention.attention.query.bias"),
            pre_logits=given.shape("pooler.dense.weight", 2)[0] if pooled else 0,
            pre_logits_activation=keys.activation("pooler_act") if pooled else "tanh",
        )

    square = False  # whether positions are always of as many rows as columns

    def table(self, config: ViTConfig, style: frozenset[str]) -> Iterable[Row]:
        block, mine = "encoder.layer.{i}.", "blocks.{i}."
        head = "cls_classifier" if config.dist_head else "classifier"
        return [
            Row("embeddings.cls_token", "cls_token", class_tokens(config)),
            Row("embeddings.distillation_token", "dist_token", TOKEN),
            Row("embeddings.patch_embeddings.projection.weight", "patch_embed.weight", CONVOLUTION),
            Row("embeddings.patch_embeddings.projection.bias", "patch_embed.bias", SAME),
            Row("embeddings.position_embeddings", "pos_embed", TOKENS),
            *linear(f"{block}attention.attention.query", f"{mine}attn.q"),
            *linear(f"{block}attention.attention.key", f"{mine}attn.k"),
            *linear(f"{block}attention.attention.value", f"{mine}attn.v"),
            *linear(f"{block}attention.output.dense", f"{mine}attn.proj"),
            *linear(f"{block}intermediate.dense", f"{mine}mlp.fc1"),
            *linear(f"{block}output.dense", f"{mine}mlp.fc2"),
            *norm(f"{block}{self.norms[0]}", f"{mine}norm1"),
            *norm(f"{block}{self.norms[1]}", f"{mine}norm2"),
            *norm("layernorm", "norm"),
            *linear("pooler.dense", "pre_logits"),
            *linear(head, "head"),
            *linear("distillation_classifier", "head_dist"),
        ]

    def described(self, config: ViTConfig) -> dict[str, Any]:
        check(bool(self.architectures[1]) or not config.classes, f"{self.name} has no class with a head")
        json = {
            "architectures": [self.architectures[config.classes > 0]],
            "model_type": self.model_types[0],
            **self.common_json(config),
            "intermediate_size": config.hidden,
            "qkv_bias": all(config.qkv_biases),
        }
        if config.pre_logits:
            json |= {"pooler_output_size": config.pre_logits, "pooler_act": WRITTEN[config.pre_logits_activation]}
        return json | label_keys(config.classes)


FAMILY = HfViT()
