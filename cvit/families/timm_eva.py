"""timm's `Eva`: EVA, EVA-02, the Perception Encoder, RoPE-ViT, DINOv3 and others with rotary positions.

Where its rotary positions turn neighbouring channels (style "neighbours"), columns of q and k are reordered.
"""

from __future__ import annotations

import re

from ..base.errors import check
from .family import Row
from .timm_json import eva_json
from .timm_vit import TimmViT, attention_rows, embedding_rows, head_rows, mlp_rows, norm, packed, section
from .transform import SAME, Axes


class TimmEva(TimmViT):
    """timm.models.eva.Eva."""

    name = "timm eva"
    ignored = (r"mask_token$", r".*\.k_bias$", r"rope\.(periods|bands|pos_embed)")
    of_module = ("Eva",)
    table = "eva"
    kind = re.compile(r"rope\.freqs$|blocks\.0\.(gamma_1|attn\.q_bias|attn\.q_proj\.weight)$")

    def refuse(self, given):
        if given.has("blocks.0.attn.gate.weight"):
            return "a gate of the attention's output (blocks.0.attn.gate)"
        for name, shape in given.shapes.items():
            if name.endswith("attn.k_proj.weight"):
                query = given.shapes.get(name.replace("k_proj", "q_proj"))
                if query is not None and query != shape:
                    return f"grouped-query attention ({name} has shape {shape}, that of the queries {query})"
        return super().refuse(given)

    def config(self, given):
        said = self.claims(given.json) or "use_rot_pos_emb" in section(given, "model_args") or given.has("rope.freqs")
        check(
            said,
            "the names of timm's Eva do not say which rotary positions it has: "
            "give config.json, or config_json={'architecture': a name of timm's}",
        )
        config = super().config(given)
        if given.has("rope.freqs"):
            shape = given.shape("rope.freqs", 4)
            needed = (2, config.depth, config.heads, config.head_width // 2)
            check(shape == needed, f"rope.freqs must have shape {needed}, got {shape}")
            check(config.rope is not None, "rope.freqs belong to rotary positions, which config.json denies")
        return config

    def style(self, given):
        known = self._known(given.json) or {}
        style = set(known.get("style", ()))
        half = section(given, "model_args").get("rope_rotate_half")
        if half is not None:
            style = style - {"neighbours"} if half else style | {"neighbours"}
        if packed(given):
            style.add("packed")
        if given.has("blocks.0.attn.q_proj.weight"):
            style.add("split")
        if given.has("blocks.0.attn.q_bias"):
            style.add("bias apart")
        if given.has("rope.freqs"):
            style.add("neighbours")
        return frozenset(style)

    def config_json(self, config, style):
        return eva_json(config, style)

    def style_for(self, config):
        style = {"packed"} if config.gated and not config.mlp_norm else set()
        if config.qkv_biases == (True, False, True):
            style.add("bias apart")
        if config.rope is not None:
            style.add("neighbours")
        return frozenset(style)

    def rows(self, config, style=frozenset()):
        rows = embedding_rows(config)
        if config.rope is not None and config.rope.learned:
            rows.append(Row("rope.freqs", "blocks.{i}.attn.rope", Axes("A H E", "A 1 H E", axis=1)))
        rows += norm("blocks.{i}.norm1", "blocks.{i}.norm1", config)
        rows += attention_rows(config, "blocks.{i}.attn", "blocks.{i}.attn", style)
        rows += norm("blocks.{i}.norm2", "blocks.{i}.norm2", config)
        rows += mlp_rows(config, "blocks.{i}.mlp", "blocks.{i}.mlp", "packed" in style)
        for branch, scale in enumerate(config.layer_scales, 1):
            if scale is not None:
                rows.append(Row(f"blocks.{{i}}.gamma_{branch}", f"blocks.{{i}}.ls{branch}.gamma", SAME))
        return rows + head_rows(config)
