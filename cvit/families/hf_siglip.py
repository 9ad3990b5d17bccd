"""The image tower of SigLIP of transformers (Zhai et al. 2023, arXiv:2303.15343), and of SigLIP 2 at a fixed size.

    SiglipVisionModel               attention pooling; the mean over the patches where `vision_use_head` is false
    SiglipModel                     the same of a model of pictures and text, whose text tower is read over
    SiglipForImageClassification    the mean over the patches; the pooling's weights, if there are any, are read over

Published SigLIP 2 models of a fixed size are of these classes. Those of any size (`siglip2`) are a linear layer of
patches whose values are ordered (P, P, C), and are read at the size that their positions are of.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ..base.errors import check
from ..model.config import ViTConfig
from .family import Given, Row
from .hf import HfFamily, Keys, label_keys, linear, norm, packed
from .transform import CONVOLUTION, PIXELS_FIRST, SAME, TOKEN

DEFAULTS = {
    "num_attention_heads": 12, "hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6, "image_size": 224,
}  # fmt: skip
NAFLEX = {**DEFAULTS, "patch_size": 16, "num_patches": 256}


class HfSiglip(HfFamily):
    name = "hf_siglip"
    model_types = ("siglip_vision_model", "siglip")
    defaults = DEFAULTS
    tower = "vision_config"
    processor = "SiglipImageProcessor"
    marks: tuple[str, ...] = (
        "embeddings.patch_embedding.bias",
        "embeddings.position_embedding.weight",
        "post_layernorm.weight",
    )
    prefixes = ("vision_model.",)
    base_prefix = "vision_model."
    ignored = (r"embeddings\.position_ids", r"text_model\.", r"logit_(scale|bias)$")
    patch_embedding = "embeddings.patch_embedding.weight"
    block = "encoder.layers.{i}."
    prefix = "Siglip"  # of the classes' names

    def spelling(self, names: Iterable[str]) -> dict[str, str]:
        """A classifier reads over the pooling's weights."""
        spelling = super().spelling(names)
        if any("classifier." in name for name in spelling.values()):
            spelling = {name: ours for name, ours in spelling.items() if not ours.startswith("head.")}
        return spelling

    def headed(self, config: ViTConfig) -> bool:
        """Published files of every class have the prefix."""
        return True

    def config(self, given: Given) -> ViTConfig:
        keys = self.keys(given)
        fields = self.common(given, keys)
        patches = given.shape("embeddings.position_embedding.weight", 2)[0]
        return ViTConfig(
            **fields,
            image_size=self.size(keys, patches, fields["patch_size"]),
            hidden=given.shape("encoder.layers.0.mlp.fc1.weight", 2)[0],
            classes=self.classes(given, "classifier.weight"),
            pool="map" if given.has("head.probe") else "mean",
            pool_hidden=self.classes(given, "head.mlp.fc1.weight"),
        )

    def size(self, keys: Keys, patches: int, patch: tuple[int, int]) -> tuple[int, int]:
        """The image size that the positions are of."""
        return keys.image_size(patches, patch, square=True)

    def table(self, config: ViTConfig, style: frozenset[str]) -> Iterable[Row]:
        block, mine = "encoder.layers.{i}.", "blocks.{i}."
        return [
            Row("embeddings.patch_embedding.weight", "patch_embed.weight", CONVOLUTION),
            Row("embeddings.patch_embedding.bias", "patch_embed.bias", SAME),
            Row("embeddings.position_embedding.weight", "pos_embed", SAME),
            *linear(f"{block}self_attn.q_proj", f"{mine}attn.q"),
            *linear(f"{block}self_attn.k_proj", f"{mine}attn.k"),
            *linear(f"{block}self_attn.v_proj", f"{mine}attn.v"),
            *linear(f"{block}self_attn.out_proj", f"{mine}attn.proj"),
            *linear(f"{block}mlp.fc1", f"{mine}mlp.fc1"),
            *linear(f"{block}mlp.fc2", f"{mine}mlp.fc2"),
            *norm(f"{block}layer_norm1", f"{mine}norm1"),
            *norm(f"{block}layer_norm2", f"{mine}norm2"),
            *norm("post_layernorm", "norm"),
            Row("head.probe", "pool.latent", TOKEN),
            *packed("head.attention.in_proj_", ("pool.q", "pool.k", "pool.v")),
            *linear("head.attention.out_proj", "pool.proj"),
            *norm("head.layernorm", "pool.norm"),
            *linear("head.mlp.fc1", "pool.fc1"),
            *linear("head.mlp.fc2", "pool.fc2"),
            *linear("classifier", "head"),
        ]

    def described(self, config: ViTConfig) -> dict[str, Any]:
        vision, whole = self.model_types
        own = {
            "model_type": vision,
            **self.common_json(config),
            "intermediate_size": config.hidden,
            "vision_use_head": config.pool == "map",
        }
        if config.classes:
            check(config.pool != "map", f"{self.name} has no classifier behind attention pooling")
            json = {"architectures": [f"{self.prefix}ForImageClassification"], "model_type": whole}
            return {**json, "vision_config": own, **label_keys(config.classes)}
        return {"architectures": [f"{self.prefix}VisionModel"], **own}


class HfSiglip2(HfSiglip):
    name = "hf_siglip2"
    model_types = ("siglip2_vision_model", "siglip2")
    defaults = NAFLEX
    processor = "Siglip2ImageProcessor"
    marks = ()
    position_resampling = "bilinear antialias"
    prefix = "Siglip2"

    def common(self, given: Given, keys: Keys) -> dict[str, Any]:
        width, values = given.shape(self.patch_embedding, 2)
        patch = keys.pair("patch_size")
        area = patch[0] * patch[1]
        check(values % area == 0, f"patches of {patch} pixels do not have {values} values")
        convolution = {**given.shapes, self.patch_embedding: (width, values // area, *patch)}
        return super().common(Given(convolution, given.json, given.num_heads, given.image_size), keys)

    def size(self, keys: Keys, patches: int, patch: tuple[int, int]) -> tuple[int, int]:
        keys.pop("image_size", None)
        return keys.image_size(patches, patch)

    def table(self, config: ViTConfig, style: frozenset[str]) -> Iterable[Row]:
        rows = super().table(config, style)
        return [Row(row.theirs, row.ours, PIXELS_FIRST) if row.how is CONVOLUTION else row for row in rows]

    def described(self, config: ViTConfig) -> dict[str, Any]:
        json = super().described(config)
        own = json.get("vision_config", json)
        del own["image_size"]
        own["num_patches"] = config.patches
        return json


FAMILY = HfSiglip()
SIGLIP_2 = HfSiglip2()
