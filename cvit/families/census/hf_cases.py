"""Classes of transformers and their options, small: which are asked for, and as which family they are read."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

SMALL = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, image_size=32, patch_size=8)
TEXT = dict(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, vocab_size=100)


NOWHERE = "nowhere"


class Case(NamedTuple):
    """A class, the family that it is read as, its configuration, and what is asked of it."""

    kind: str
    family: str
    config: str
    options: Mapping[str, Any] = MappingProxyType({})
    init: Mapping[str, Any] = MappingProxyType({})  # of the class itself
    vision: bool = False  # whether the configuration is nested
    written: str = ""  # as what it is written, where not as itself; NOWHERE where no class is what was read of it


F = dict(intermediate_size=48)
WIDE = dict(image_size=(32, 16), patch_size=(8, 4))
CASES = [
    Case("ViTModel", "hf_vit", "ViTConfig", dict(**F, pooler_output_size=24, pooler_act="relu")),
    Case("ViTModel", "hf_vit", "ViTConfig", dict(**F, qkv_bias=False), dict(add_pooling_layer=False)),
    Case("ViTModel", "hf_vit", "ViTConfig", dict(**F, **WIDE, hidden_act="gelu_new")),
    Case("ViTForImageClassification", "hf_vit", "ViTConfig", dict(**F, num_labels=3)),
    Case("DeiTModel", "hf_deit", "DeiTConfig", F),
    Case("DeiTForImageClassification", "hf_deit", "DeiTConfig", dict(**F, num_labels=3)),
    Case("DeiTForImageClassificationWithTeacher", "hf_deit", "DeiTConfig", dict(**F, num_labels=3, **WIDE)),
    Case("ViTMSNModel", "hf_vit_msn", "ViTMSNConfig", F),
    Case("ViTMSNForImageClassification", "hf_vit_msn", "ViTMSNConfig", dict(**F, num_labels=3)),
    Case("ViTMAEModel", "hf_vit_mae", "ViTMAEConfig", dict(**F, mask_ratio=0.0)),
    Case("IJepaModel", "hf_ijepa", "IJepaConfig", F),
    Case("IJepaForImageClassification", "hf_ijepa", "IJepaConfig", dict(**F, num_labels=3, **WIDE)),
    Case("PixioModel", "hf_pixio", "PixioConfig", dict(n_cls_tokens=3, mlp_ratio=2)),
    Case("PixioModel", "hf_pixio", "PixioConfig", dict(n_cls_tokens=1)),
    Case("Dinov2Model", "hf_dinov2", "Dinov2Config", dict(mlp_ratio=2, layerscale_value=0.5)),
    Case("Dinov2Model", "hf_dinov2", "Dinov2Config", dict(use_swiglu_ffn=True, qkv_bias=False)),
    Case("Dinov2ForImageClassification", "hf_dinov2", "Dinov2Config", dict(num_labels=3, use_mask_token=False)),
    Case("Dinov2WithRegistersModel", "hf_dinov2_with_registers", "Dinov2WithRegistersConfig"),
    Case("Dinov2WithRegistersModel", "hf_dinov2_with_registers", "Dinov2WithRegistersConfig",
         dict(num_register_tokens=0, use_swiglu_ffn=True)),
    Case("Dinov2WithRegistersForImageClassification", "hf_dinov2_with_registers", "Dinov2WithRegistersConfig",
         dict(num_labels=3)),
    Case("DINOv3ViTModel", "hf_dinov3_vit", "DINOv3ViTConfig", dict(**F, num_register_tokens=2, rope_theta=50.0)),
    Case("DINOv3ViTModel", "hf_dinov3_vit", "DINOv3ViTConfig",
         dict(**F, **WIDE, use_gated_mlp=True, hidden_act="silu", query_bias=False, mlp_bias=False, proj_bias=False)),
    Case("DINOv3ViTModel", "hf_dinov3_vit", "DINOv3ViTConfig", dict(**F, key_bias=True, value_bias=False)),
    Case("CLIPVisionModel", "hf_clip", "CLIPVisionConfig", F),
    Case("CLIPVisionModelWithProjection", "hf_clip", "CLIPVisionConfig", dict(**F, projection_dim=24)),
    Case("CLIPForImageClassification", "hf_clip", "CLIPConfig", dict(**F, hidden_act="gelu"), vision=True),
    Case("CLIPModel", "hf_clip", "CLIPConfig", F, vision=True, written="CLIPVisionModelWithProjection"),
    Case("MetaClip2VisionModel", "hf_metaclip_2", "MetaClip2VisionConfig", F),
    Case("MetaClip2VisionModelWithProjection", "hf_metaclip_2", "MetaClip2VisionConfig", dict(**F, projection_dim=24)),
    Case("MetaClip2ForImageClassification", "hf_metaclip_2", "MetaClip2Config", F, vision=True),
    Case("MetaClip2Model", "hf_metaclip_2", "MetaClip2Config", F, vision=True,
         written="MetaClip2VisionModelWithProjection"),
    Case("SiglipVisionModel", "hf_siglip", "SiglipVisionConfig", F),
    Case("SiglipVisionModel", "hf_siglip", "SiglipVisionConfig", dict(**F, vision_use_head=False, image_size=34)),
    Case("SiglipForImageClassification", "hf_siglip", "SiglipConfig", F, vision=True),
    Case("SiglipModel", "hf_siglip", "SiglipConfig", F, vision=True, written="SiglipVisionModel"),
    Case("Siglip2VisionModel", "hf_siglip2", "Siglip2VisionConfig", dict(**F, num_patches=16, image_size=None)),
    Case("Siglip2ForImageClassification", "hf_siglip2", "Siglip2Config", dict(**F, num_patches=16, image_size=None),
         vision=True),
    Case("Siglip2Model", "hf_siglip2", "Siglip2Config", dict(**F, num_patches=16, image_size=None), vision=True,
         written="Siglip2VisionModel"),
    Case("Aimv2VisionModel", "hf_aimv2", "Aimv2VisionConfig", F),
    Case("Aimv2VisionModel", "hf_aimv2", "Aimv2VisionConfig", dict(**F, qkv_bias=True, mlp_bias=True, use_head=False)),
    Case("Aimv2VisionModel", "hf_aimv2", "Aimv2VisionConfig", dict(**F, qkv_bias=True, is_native=True)),
    Case("Tipsv2VisionModel", "hf_tipsv2", "Tipsv2VisionConfig", dict(num_register_tokens=2)),
    Case("Tipsv2VisionModel", "hf_tipsv2", "Tipsv2VisionConfig", dict(use_swiglu_ffn=True, num_register_tokens=0)),
    Case("Sapiens2Model", "hf_sapiens2", "Sapiens2Config", dict(**F, num_register_tokens=2)),
    Case("Sapiens2Model", "hf_sapiens2", "Sapiens2Config",
         dict(**F, **WIDE, use_gated_mlp=False, use_qk_norm=False, num_register_tokens=0, key_bias=False)),
]  # fmt: skip
DECODER = dict(decoder_hidden_size=32, decoder_num_hidden_layers=1, decoder_num_attention_heads=2)
PRETRAINED = [  # whose decoder is read over
    Case("ViTMAEForPreTraining", "hf_vit_mae", "ViTMAEConfig",
         dict(**F, **DECODER, decoder_intermediate_size=32, mask_ratio=0.0)),
    Case("ViTForMaskedImageModeling", "hf_vit", "ViTConfig", dict(**F, encoder_stride=8)),
]  # fmt: skip
TOWERS = [  # whose text tower is read over
    Case("Aimv2Model", "hf_aimv2", "Aimv2Config", F, vision=True, written=NOWHERE),
    Case("Tipsv2Model", "hf_tipsv2", "Tipsv2Config", vision=True),
]
SWIN = dict(embed_dim=16, depths=[1, 1], num_heads=[2, 2], **dict.fromkeys(SMALL))  # less what it lacks
REFUSED = [  # and the part that the message names
    (Case("BeitModel", "", "BeitConfig", dict(**F, use_relative_position_bias=True)), "relative position bias"),
    (Case("BeitModel", "", "BeitConfig", dict(**F, use_absolute_position_embeddings=True)), "relative position bias"),
    (Case("VideoMAEModel", "", "VideoMAEConfig", F), "tubelet embedding"),
    (Case("SwinModel", "", "SwinConfig", SWIN), "shifted windows|relative position bias"),
    (Case("MLCDVisionModel", "", "MLCDVisionConfig", F), "rotary positions of the class token"),
    (Case("RadioModel", "", "RadioConfig"), "a summary of some of the class tokens"),
    (Case("Sapiens2Model", "", "Sapiens2Config", dict(**F, num_key_value_heads_per_layer=[4, 2])),
     "grouped-query attention"),
    (Case("ViTForImageClassification", "", "ViTConfig", dict(**F, num_labels=0)), "a classifier without classes"),
]  # fmt: skip
ALL = [*CASES, *PRETRAINED, *TOWERS, *(case for case, _ in REFUSED)]


def named(case: Case) -> str:
    """A case in the table: the class, and the options that are not those of every case."""
    usual = {**SMALL, **F, "num_labels": 3}
    options = {**case.options, **case.init}
    told = [f"{key}={value}" for key, value in options.items() if value is not None and usual.get(key) != value]
    return ", ".join([case.kind, *told])
