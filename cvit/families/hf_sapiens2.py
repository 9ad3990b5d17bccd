"""The backbone of Sapiens 2 of transformers, Sapiens2Model: DINOv3 with RMSNorm, also of queries and keys, and layer
scale behind the attention alone. Blocks with fewer heads of keys and values than of queries are refused.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ..base.errors import check
from ..model.config import ViTConfig
from ..model.rope import Rope
from .family import Given, Row, whole_patches
from .hf import HfFamily, layer_scale_value, linear, norm, packed, register_rows
from .transform import CONVOLUTION, SAME, TOKEN

DEFAULTS = {
    "num_attention_heads": 16, "hidden_act": "silu", "rms_norm_eps": 1e-6, "image_size": 224, "rope_theta": 100.0,
    "layerscale_value": 1.0,
}  # fmt: skip


class HfSapiens2(HfFamily):
    name = "hf_sapiens2"
    model_types = ("sapiens2",)
    defaults = DEFAULTS
    processor = "Sapiens2ImageProcessor"
    marks = ("storage_tokens", "blocks.0.attn.wq.weight", "blocks.0.ffn.w3.weight")
    prefixes = ("backbone.",)
    aliases = (
        (r"^embeddings\.cls_token$", "cls_token"),
        (r"^embeddings\.mask_token$", "mask_token"),
        (r"^embeddings\.register_tokens$", "storage_tokens"),
        (r"^embeddings\.patch_embeddings\.", "patch_embed.projection."),
        (r"^norm\.", "ln1."),
        (r"^model\.layer\.", "blocks."),
        (r"\.attention\.([qkv])_proj\.", r".attn.w\1."),
        (r"\.attention\.([qk])_norm\.", r".attn.\1_norm."),
        (r"\.attention\.o_proj\.", ".attn.proj."),
        (r"\.layer_scale1\.lambda1$", ".attn.gamma.weight"),
        (r"\.mlp\.down_proj\.", ".ffn.w3."),
        (r"\.norm([12])\.", r".ln\1."),
    )
    ignored = (r"mask_token$", r"decode_head\.")
    patch_embedding = "patch_embed.projection.weight"
    block = "blocks.{i}."

    def style(self, given: Given) -> frozenset[str]:
        known = {"registers": "storage_tokens", "split": "blocks.0.mlp.up_proj.weight"}
        return frozenset(style for style, name in known.items() if given.has(name))

    def style_for(self, config: ViTConfig) -> frozenset[str]:
        return frozenset({"registers"} if config.gated else {"registers", "split"})

    def refuse(self, given: Given) -> str | None:
        for name, shape in given.shapes.items():
            if name.endswith(".attn.wk.weight") and len(shape) == 2 and shape[0] != shape[1]:
                return f"grouped-query attention ({name})"
        return super().refuse(given)

    def config(self, given: Given) -> ViTConfig:
        keys = self.keys(given)
        fields = self.common(given, keys)
        patch = fields["patch_size"]
        size = keys.pair("image_size") if "image_size" in keys else (224, 224)
        hidden = given.shape("blocks.0.ffn.w3.weight", 2)[1]
        gated = given.has("blocks.0.mlp.gate_proj.weight") or self.classes(given, "blocks.0.ffn.w12.weight") > hidden
        q, k, v = (given.has(f"blocks.0.attn.w{one}.bias") for one in "qkv")
        return ViTConfig(
            **fields,
            image_size=whole_patches(size, patch),
            hidden=hidden,
            gated=gated,
            norm="rms",
            qk_norm=given.has("blocks.0.attn.q_norm.weight"),
            classes=0,
            class_token=1,
            registers=self.registers(given, "storage_tokens"),
            pos_tokens="none",
            rope=Rope("centred", theta=keys.number("rope_theta")),
            qkv_bias=(q, k, v),
            proj_bias=given.has("blocks.0.attn.proj.bias"),
            mlp_bias=given.has("blocks.0.ffn.w3.bias"),
            layer_scale=(keys.number("layerscale_value"), None),
        )

    def table(self, config: ViTConfig, style: frozenset[str]) -> Iterable[Row]:
        block, mine = "blocks.{i}.", "blocks.{i}."
        first = linear(f"{block}{'mlp.up_proj' if 'split' in style else 'ffn.w12'}", f"{mine}mlp.fc1")
        if config.gated and "split" in style:
            first += linear(f"{block}mlp.gate_proj", f"{mine}mlp.fc1_gate")
        elif config.gated:
            first = packed(f"{block}ffn.w12.", [f"{mine}mlp.fc1_gate", f"{mine}mlp.fc1"])
        return [
            Row("cls_token", "cls_token", TOKEN),
            *register_rows("storage_tokens", config, style),
            Row("patch_embed.projection.weight", "patch_embed.weight", CONVOLUTION),
            Row("patch_embed.projection.bias", "patch_embed.bias", SAME),
            *linear(f"{block}attn.wq", f"{mine}attn.q"),
            *linear(f"{block}attn.wk", f"{mine}attn.k"),
            *linear(f"{block}attn.wv", f"{mine}attn.v"),
            Row(f"{block}attn.q_norm.weight", f"{mine}attn.q_norm.weight", SAME),
            Row(f"{block}attn.k_norm.weight", f"{mine}attn.k_norm.weight", SAME),
            *linear(f"{block}attn.proj", f"{mine}attn.proj"),
            Row(f"{block}attn.gamma.weight", f"{mine}ls1.gamma", SAME),
            *first,
            *linear(f"{block}ffn.w3", f"{mine}mlp.fc2"),
            *norm(f"{block}ln1", f"{mine}norm1"),
            *norm(f"{block}ln2", f"{mine}norm2"),
            *norm("ln1", "norm"),
        ]

    def described(self, config: ViTConfig) -> dict[str, Any]:
        check(not config.classes, f"{self.name} has no class with a head")
        q, k, v = config.qkv_biases
        return {
            "architectures": ["Sapiens2Model"],
            "model_type": "sapiens2",
            **self.common_json(config),
            "intermediate_size": config.hidden,
            "use_gated_mlp": config.gated,
            "use_qk_norm": config.qk_norm,
            "num_key_value_heads_per_layer": [config.heads] * config.depth,
            "query_bias": q,
            "key_bias": k,
            "value_bias": v,
            "proj_bias": config.has_bias("proj"),
            "mlp_bias": config.has_bias("mlp"),
            "num_register_tokens": config.registers,
            "rope_theta": config.rope.theta if config.rope else 100.0,
            "layerscale_value": layer_scale_value(config),
        }


FAMILY = HfSapiens2()
