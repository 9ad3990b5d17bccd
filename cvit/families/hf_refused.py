"""Models of transformers that have a part that cvit does not compute, by the `model_type` of their config.json."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..model.config import ViTConfig
from .family import Family, Given, Row

PARTS = {
    "beit": "relative position bias",
    "data2vec-vision": "relative position bias",
    "dinov3_convnext": "convolutional stages",
    "convnext": "convolutional stages",
    "convnextv2": "convolutional stages",
    "resnet": "convolutional stages",
    "regnet": "convolutional stages",
    "efficientnet": "convolutional stages",
    "mobilevit": "convolutional stages",
    "mobilevitv2": "convolutional stages",
    "levit": "convolutional stages and attention biases",
    "cvt": "convolutional projections",
    "vit_hybrid": "a convolutional stem",
    "hiera": "pooling between stages",
    "pvt": "stages of different widths",
    "pvt_v2": "stages of different widths",
    "segformer": "stages of different widths",
    "swin": "shifted windows",
    "swinv2": "shifted windows",
    "donut-swin": "shifted windows",
    "maskformer-swin": "shifted windows",
    "swin2sr": "shifted windows",
    "vitdet": "windows and relative position bias",
    "videomae": "a tubelet embedding of several frames",
    "vivit": "a tubelet embedding of several frames",
    "vjepa2": "a tubelet embedding of several frames",
    "timesformer": "attention over time",
    "mlcd": "rotary positions of the class token",
    "mlcd_vision_model": "rotary positions of the class token",
    "radio": "a summary of some of the class tokens side by side",
}


class HfRefused(Family):
    name = "hf_refused"

    def claims(self, json: Mapping[str, Any]) -> bool:
        kind = json.get("model_type")
        return isinstance(kind, str) and kind in PARTS

    def refuse(self, given: Given) -> str | None:
        kind = given.json["model_type"]
        return f"{PARTS[kind]} (model_type {kind!r})"

    def config(self, given: Given) -> ViTConfig:
        raise ValueError(self.refuse(given))

    def rows(self, config: ViTConfig, style: frozenset[str] = frozenset()) -> list[Row]:
        raise ValueError("cvit writes no model of this kind: choose another family")


FAMILY = HfRefused()
