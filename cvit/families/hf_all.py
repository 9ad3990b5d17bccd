"""All families of transformers, those whose marks are special before those whose marks are general."""

from __future__ import annotations

from . import (
    hf_aimv2,
    hf_clip,
    hf_deit,
    hf_dinov2,
    hf_dinov3,
    hf_ijepa,
    hf_pixio,
    hf_refused,
    hf_sapiens2,
    hf_siglip,
    hf_tipsv2,
    hf_vit,
    hf_vit_mae,
    hf_vit_msn,
)

HF_FAMILIES = (
    hf_refused.FAMILY,
    hf_deit.FAMILY,
    hf_vit.FAMILY,
    hf_vit_msn.FAMILY,
    hf_vit_mae.FAMILY,
    hf_ijepa.FAMILY,
    hf_dinov2.WITH_REGISTERS,
    hf_dinov2.FAMILY,
    hf_pixio.FAMILY,
    hf_dinov3.FAMILY,
    hf_clip.FAMILY,
    hf_clip.METACLIP_2,
    hf_siglip.FAMILY,
    hf_siglip.SIGLIP_2,
    hf_aimv2.FAMILY,
    hf_tipsv2.FAMILY,
    hf_sapiens2.FAMILY,
)
