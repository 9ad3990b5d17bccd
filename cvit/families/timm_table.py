"""What tensors do not say of timm's architectures: the rest of their configurations, by name.

Written by tests/data/record_timm_table.py from timm 1.0.31: do not edit. Fields are those of `ViTConfig`, but for
`style` (see `Family.style`) and `refused`, the part that cvit does not compute. Without `heads` there are width / 64;
without other fields they are as names and shapes say (cvit/families/timm_vit.py).
"""

from __future__ import annotations

from typing import Any

TABLE: dict[str, list[tuple[dict[str, Any], str]]] = {
    "vit": [
        (
            {"eps": 1e-05, "heads": 16},
            """
        aimv2_1b_patch14_224 aimv2_1b_patch14_336 aimv2_1b_patch14_448 beit3_giant_patch14_224
        beit3_giant_patch14_336 vit_giant_patch14_clip_224 vit_gigantic_patch14_clip_224
        vit_gigantic_patch14_clip_378 vit_huge_patch14_clip_224 vit_huge_patch14_clip_336
        vit_huge_patch14_clip_378
        """,
        ),
        (
            {"eps": 1e-05, "heads": 24},
            """
        aimv2_3b_patch14_224 aimv2_3b_patch14_336 aimv2_3b_patch14_448
        """,
        ),
        (
            {"eps": 1e-05, "heads": 12},
            """
        aimv2_huge_patch14_224 aimv2_huge_patch14_336 aimv2_huge_patch14_448
        """,
        ),
        (
            {"eps": 1e-05, "heads": 8},
            """
        aimv2_large_patch14_224 aimv2_large_patch14_336 aimv2_large_patch14_448
        """,
        ),
        (
            {"eps": 1e-05},
            """
        beit3_base_patch16_224 beit3_large_patch16_224 vit_base_patch16_clip_224 vit_base_patch16_clip_384
        vit_base_patch16_plus_clip_240 vit_base_patch32_clip_224 vit_base_patch32_clip_256
        vit_base_patch32_clip_384 vit_base_patch32_clip_448 vit_betwixt_patch32_clip_224
        vit_large_patch14_clip_224 vit_large_patch14_clip_336 vit_medium_patch16_clip_224
        vit_medium_patch32_clip_224 vit_xsmall_patch16_clip_224
        """,
        ),
        (
            {},
            """
        eva_large_patch14_196 eva_large_patch14_336 flexivit_base flexivit_large flexivit_small
        vit_base_patch8_224 vit_base_patch14_dinov2 vit_base_patch14_reg1_tipsv2 vit_base_patch14_reg4_dinov2
        vit_base_patch16_18x2_224 vit_base_patch16_224 vit_base_patch16_224_miil vit_base_patch16_384
        vit_base_patch16_plus_240 vit_base_patch16_radio_v3 vit_base_patch16_reg4_gap_256
        vit_base_patch16_siglip_224 vit_base_patch16_siglip_256 vit_base_patch16_siglip_384
        vit_base_patch16_siglip_512 vit_base_patch16_siglip_gap_224 vit_base_patch16_siglip_gap_256
        vit_base_patch16_siglip_gap_384 vit_base_patch16_siglip_gap_512 vit_base_patch16_xp_224
        vit_base_patch32_224 vit_base_patch32_384 vit_base_patch32_plus_256 vit_betwixt_patch16_gap_256
        vit_betwixt_patch16_reg1_gap_256 vit_betwixt_patch16_reg4_gap_256 vit_betwixt_patch16_reg4_gap_384
        vit_giant_patch14_dinov2 vit_giant_patch14_reg1_tipsv2 vit_giant_patch14_reg4_dinov2
        vit_giant_patch16_radio_v3 vit_huge_patch14_xp_224 vit_intern300m_patch14_448 vit_large_patch14_224
        vit_large_patch14_dinov2 vit_large_patch14_reg1_tipsv2 vit_large_patch14_reg4_dinov2
        vit_large_patch14_xp_224 vit_large_patch16_224 vit_large_patch16_384 vit_large_patch16_radio_v3
        vit_large_patch16_siglip_256 vit_large_patch16_siglip_384 vit_large_patch16_siglip_gap_256
        vit_large_patch16_siglip_gap_384 vit_large_patch32_224 vit_large_patch32_384
        vit_little_patch16_reg1_gap_256 vit_little_patch16_reg4_gap_256 vit_medium_patch16_gap_240
        vit_medium_patch16_gap_256 vit_medium_patch16_gap_384 vit_medium_patch16_reg1_gap_256
        vit_medium_patch16_reg4_gap_256 vit_mediumd_patch16_reg4_gap_256 vit_mediumd_patch16_reg4_gap_384
        vit_pwee_patch16_reg1_gap_256 vit_small_patch8_224 vit_small_patch14_dinov2
        vit_small_patch14_reg4_dinov2 vit_small_patch16_18x2_224 vit_small_patch16_36x1_224
        vit_small_patch16_224 vit_small_patch16_384 vit_small_patch32_224 vit_small_patch32_384
        vit_so150m2_patch16_reg1_gap_256 vit_so150m2_patch16_reg1_gap_384 vit_so150m2_patch16_reg1_gap_448
        vit_so150m_patch16_reg4_gap_256 vit_so150m_patch16_reg4_gap_384 vit_so150m_patch16_reg4_map_256
        vit_tiny_patch16_224 vit_tiny_patch16_384 vit_wee_patch16_reg1_gap_256 deit3_base_patch16_224
        deit3_base_patch16_384 deit3_large_patch16_224 deit3_large_patch16_384 deit3_medium_patch16_224
        deit3_small_patch16_224 deit3_small_patch16_384 deit_base_distilled_patch16_224
        deit_base_distilled_patch16_384 deit_base_patch16_224 deit_base_patch16_384
        deit_small_distilled_patch16_224 deit_small_patch16_224 deit_tiny_distilled_patch16_224
        deit_tiny_patch16_224
        """,
        ),
        (
            {"heads": 2},
            """
        test_vit test_vit2
        """,
        ),
        (
            {"pool_prefix": True, "heads": 3},
            """
        test_vit3
        """,
        ),
        (
            {"heads": 3},
            """
        test_vit4
        """,
        ),
        (
            {"activation": "quick_gelu", "eps": 1e-05},
            """
        vit_base_patch16_clip_quickgelu_224 vit_base_patch32_clip_quickgelu_224
        vit_large_patch14_clip_quickgelu_224 vit_large_patch14_clip_quickgelu_336
        """,
        ),
        (
            {"heads": 16},
            """
        vit_base_patch16_gap_224 vit_giant_patch14_224 vit_giant_patch16_gap_224 vit_gigantic_patch14_224
        vit_huge_patch14_224 vit_huge_patch14_gap_224 vit_huge_patch16_gap_448 vit_huge_patch16_radio_v3
        vit_huge_patch16_radio_v4 vit_so400m_patch14_reg1_tipsv2 vit_so400m_patch14_siglip_224
        vit_so400m_patch14_siglip_378 vit_so400m_patch14_siglip_384 vit_so400m_patch14_siglip_gap_224
        vit_so400m_patch14_siglip_gap_378 vit_so400m_patch14_siglip_gap_384 vit_so400m_patch14_siglip_gap_448
        vit_so400m_patch14_siglip_gap_896 vit_so400m_patch16_radio_v4 deit3_huge_patch14_224
        """,
        ),
        (
            {"block": "post"},
            """
        vit_base_patch16_rpn_224
        """,
        ),
        (
            {"activation": "gelu_tanh"},
            """
        vit_base_patch32_siglip_256 vit_base_patch32_siglip_gap_256 vit_large_patch16_siglip_512
        vit_large_patch16_siglip_gap_512
        """,
        ),
        (
            {"refused": "differential attention (blocks.0.attn.lambda_q1)"},
            """
        vit_dlittle_patch16_reg1_gap_256 vit_dwee_patch16_reg1_gap_256
        """,
        ),
        (
            {"refused": "differential attention (blocks.0.lambda_q1)"},
            """
        vit_dpwee_patch16_reg1_gap_256
        """,
        ),
        (
            {"activation": "gelu_tanh", "heads": 16},
            """
        vit_giantopt_patch16_siglip_256 vit_giantopt_patch16_siglip_384 vit_giantopt_patch16_siglip_gap_256
        vit_giantopt_patch16_siglip_gap_384 vit_so400m_patch16_siglip_256 vit_so400m_patch16_siglip_384
        vit_so400m_patch16_siglip_512 vit_so400m_patch16_siglip_gap_256 vit_so400m_patch16_siglip_gap_384
        vit_so400m_patch16_siglip_gap_512
        """,
        ),
        (
            {"activation": "quick_gelu", "eps": 1e-05, "heads": 16},
            """
        vit_gigantic_patch14_clip_quickgelu_224 vit_huge_patch14_clip_quickgelu_224
        vit_huge_patch14_clip_quickgelu_378
        """,
        ),
    ],
    "eva": [
        (
            {"rope": {"reference": (16, 16)}, "style": ("neighbours",)},
            """
        eva02_base_patch14_224 eva02_base_patch14_448 eva02_base_patch16_clip_224 eva02_large_patch14_224
        eva02_large_patch14_448 eva02_large_patch14_clip_224 eva02_large_patch14_clip_336
        eva02_small_patch14_224 eva02_small_patch14_336 eva02_tiny_patch14_224 eva02_tiny_patch14_336
        """,
        ),
        (
            {"block": "post", "heads": 16},
            """
        eva02_enormous_patch14_clip_224
        """,
        ),
        (
            {"heads": 16},
            """
        eva_giant_patch14_224 eva_giant_patch14_336 eva_giant_patch14_560 eva_giant_patch14_clip_224
        """,
        ),
        (
            {"rope": {"kind": "centred", "theta": 100.0}, "image_size": (1024, 768)},
            """
        vit_5b_patch16_sapiens2 vit_base_patch16_sapiens2 vit_giant_patch16_sapiens2 vit_huge_patch16_sapiens2
        vit_large_patch16_sapiens2
        """,
        ),
        (
            {
                "pool": "mean",
                "eps": 1e-05,
                "rope": {"kind": "centred", "theta": 100.0},
                "image_size": (256, 256),
                "heads": 32,
            },
            """
        vit_7b_patch16_dinov3
        """,
        ),
        (
            {"pool": "mean", "eps": 1e-05, "rope": {"kind": "centred", "theta": 100.0}, "image_size": (256, 256)},
            """
        vit_base_patch16_dinov3 vit_base_patch16_dinov3_qkvb vit_huge_plus_patch16_dinov3
        vit_huge_plus_patch16_dinov3_qkvb vit_large_patch16_dinov3 vit_large_patch16_dinov3_qkvb
        vit_small_patch16_dinov3 vit_small_patch16_dinov3_qkvb vit_small_plus_patch16_dinov3
        vit_small_plus_patch16_dinov3_qkvb vit_tiny_patch16_dinov3_qkvb
        """,
        ),
        (
            {"eps": 1e-05, "rope": {"kind": "centred", "theta": 100.0}, "image_size": (512, 512)},
            """
        vit_base_patch16_lingbot vit_giant_patch16_lingbot vit_large_patch16_lingbot vit_small_patch16_lingbot
        """,
        ),
        (
            {"rope": {"theta": 100.0, "columns_first": True}, "image_size": (224, 224), "style": ("neighbours",)},
            """
        vit_base_patch16_rope_224 vit_large_patch16_rope_224 vit_small_patch16_rope_224
        """,
        ),
        (
            {"rope": {"theta": 100.0, "columns_first": True}, "style": ("neighbours",)},
            """
        vit_base_patch16_rope_ape_224 vit_large_patch16_rope_ape_224 vit_small_patch16_rope_ape_224
        """,
        ),
        (
            {"image_size": (224, 224)},
            """
        vit_base_patch16_rope_mixed_224 vit_large_patch16_rope_mixed_224 vit_small_patch16_rope_mixed_224
        """,
        ),
        (
            {},
            """
        vit_base_patch16_rope_mixed_ape_224 vit_large_patch16_rope_mixed_ape_224
        vit_small_patch16_rope_mixed_ape_224
        """,
        ),
        (
            {"rope": {"reference": (16, 16)}, "image_size": (256, 256), "style": ("neighbours",)},
            """
        vit_base_patch16_rope_reg1_gap_256 vit_betwixt_patch16_rope_reg4_gap_256
        vit_medium_patch16_rope_reg1_gap_256 vit_mediumd_patch16_rope_reg1_gap_256
        """,
        ),
        (
            {
                "eps": 1e-05,
                "rope": {"offset": 1.0, "reference": (14, 14), "columns_first": True},
                "pool_heads": 8,
                "style": ("neighbours",),
            },
            """
        vit_pe_core_base_patch16_224
        """,
        ),
        (
            {
                "eps": 1e-05,
                "rope": {"reference": (32, 32), "columns_first": True},
                "pool_heads": 8,
                "heads": 16,
                "style": ("neighbours",),
            },
            """
        vit_pe_core_gigantic_patch14_448
        """,
        ),
        (
            {
                "eps": 1e-05,
                "rope": {"offset": 1.0, "reference": (24, 24), "columns_first": True},
                "pool_heads": 8,
                "style": ("neighbours",),
            },
            """
        vit_pe_core_large_patch14_336 vit_pe_core_small_patch16_384 vit_pe_core_tiny_patch16_384
        """,
        ),
        (
            {
                "eps": 1e-05,
                "rope": {"reference": (32, 32), "columns_first": True},
                "heads": 16,
                "style": ("neighbours",),
            },
            """
        vit_pe_lang_gigantic_patch14_448 vit_pe_spatial_gigantic_patch14_448
        """,
        ),
        (
            {
                "pool": "mean",
                "eps": 1e-05,
                "rope": {"offset": 1.0, "reference": (32, 32), "columns_first": True},
                "style": ("neighbours",),
            },
            """
        vit_pe_lang_large_patch14_448 vit_pe_spatial_base_patch16_512 vit_pe_spatial_large_patch14_448
        vit_pe_spatial_small_patch16_512 vit_pe_spatial_tiny_patch16_512
        """,
        ),
    ],
}


def architecture(table: str, name: Any) -> dict[str, Any] | None:
    """Fields of the configuration of timm's architecture `name` that its tensors do not say; None if unknown."""
    for fields, names in TABLE[table]:
        if name in names.split():
            return fields
    return None
