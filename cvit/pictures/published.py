"""The settings that published models come with: timm's `pretrained_cfg` and transformers' `preprocessor_config.json`.

Both are read into the fields of `Preprocessing`. A key that is missing has the default of the library, which in
transformers depends on the class that the file names (as of transformers 5.24; timm 1.0).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ..base.errors import check, listed, short
from ..base.numbers import as_int, finite, shown
from .pixels import INTERPOLATIONS, Size

Fields = dict[str, Any]

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
HALF = (0.5, 0.5, 0.5)

TIMM_DEFAULTS: Fields = dict(
    input_size=(3, 224, 224), interpolation="bicubic", mean=IMAGENET_MEAN, std=IMAGENET_STD, crop_pct=0.875,
    crop_mode="center",
)  # fmt: skip
TIMM_MODES = {"center": "short_edge", "squash": "squash", "border": "long_edge"}


def fields_of_timm(config: Mapping) -> Fields:
    """The fields of timm's `pretrained_cfg`; keys that say nothing about pictures are passed over."""
    check(isinstance(config, Mapping), f"pretrained_cfg must be a dict, got {shown(config)}")
    get = lambda key: config.get(key) or TIMM_DEFAULTS[key]  # timm, too, takes its default for None, 0 and ()
    shape, mode = get("input_size"), get("crop_mode")
    check(
        isinstance(shape, (list, tuple)) and len(shape) == 3,
        f"pretrained_cfg: input_size must be (channels, height, width), got {shown(shape)}",
    )
    channels, *edges = (as_int("pretrained_cfg: input_size", number, maximum=1 << 15) for number in shape)
    fraction = finite("pretrained_cfg: crop_pct", get("crop_pct"))
    check(fraction > 1e-3, f"pretrained_cfg: crop_pct must be more than 0.001, got {shown(fraction)}")
    check(
        isinstance(mode, str) and mode in TIMM_MODES,
        f"pretrained_cfg: crop_mode must be one of {listed(TIMM_MODES)}, got {shown(mode)}",
    )
    mean, std = (_per_channel(f"pretrained_cfg: {key}", get(key), channels) for key in ("mean", "std"))
    return dict(
        size=tuple(edges), resize=TIMM_MODES[mode], resize_size=tuple(math.floor(edge / fraction) for edge in edges),
        interpolation=get("interpolation"), crop=True, rounding="timm", mean=mean, std=std,
    )  # fmt: skip


def timm_of_fields(fields: Fields) -> Fields:
    """The keys of timm's `pretrained_cfg` for these fields; crop origins and long edges then round as timm's do."""
    mode = {resize: mode for mode, resize in TIMM_MODES.items()}.get(fields["resize"])
    size, fraction = fields["size"], crop_fraction(fields)
    for right, message in (
        (mode is not None, "pictures are not resized"),
        (fraction is not None, f"size {size} is no fraction of the resized {fields['resize_size']}"),
        (abs(fields["rescale"] * 255 - 1) < 1e-6, f"rescale is {fields['rescale']:g} and not 1/255"),
    ):
        check(right, f"timm has no such preprocessing: {message}")
    return dict(
        input_size=(len(fields["mean"]), *size), interpolation=fields["interpolation"], mean=fields["mean"],
        std=fields["std"], crop_pct=fraction, crop_mode=mode,
    )  # fmt: skip


def crop_fraction(fields: Fields) -> float | None:
    """The roundest number f for which size / f, cut off, is the resized size: what timm calls crop_pct.

    The resized size alone is kept, since it is what pixels depend on, and several numbers lead to it; people choose
    0.9, 0.95, 0.875 and the like. None if height and width have no such number in common.
    """
    size, resized = fields["size"], fields["resize_size"]
    if not fields["crop"] or resized is None:
        return 1.0
    most = min(edge / large for edge, large in zip(size, resized))
    for steps in (10, 20, 40, 100, 200, *(10**digits for digits in range(3, 16))):
        fraction = math.floor(most * steps + 1e-6) / steps
        if fraction > 0 and all(math.floor(edge / fraction) == large for edge, large in zip(size, resized)):
            return fraction
    return None


def _square(edge: int) -> Fields:
    return {"height": edge, "width": edge}


_HF_COMMON: Fields = dict(
    do_resize=True, do_center_crop=False, do_rescale=True, rescale_factor=1 / 255, do_normalize=True,
    do_convert_rgb=False, size=_square(224), crop_size=_square(224), image_mean=HALF, image_std=HALF,
)  # fmt: skip
_HF_SHORT: Fields = dict(
    size={"shortest_edge": 224}, resample=3, do_center_crop=True, image_mean=CLIP_MEAN, image_std=CLIP_STD,
    do_convert_rgb=True,
)  # fmt: skip
HF_DEFAULTS: dict[str, Fields] = {  # by the class's name, without "ImageProcessor" or "FeatureExtractor"
    "ViT": dict(resample=2),
    "DeiT": dict(resample=3, size=_square(256), do_center_crop=True),
    "CLIP": _HF_SHORT,
    "Bit": _HF_SHORT,
    "Siglip": dict(resample=3, do_convert_rgb=True),
    "DINOv3ViT": dict(resample=2, image_mean=IMAGENET_MEAN, image_std=IMAGENET_STD),
    "Beit": dict(resample=3),
}
EDGE_IS_SHORT = ("CLIP", "Bit", "Siglip")  # where a single number for `size` is the short edge
TYPE_KEYS = ("image_processor_type", "feature_extractor_type")
NEEDED = ("size", "resample", "image_mean", "image_std")  # of a class that is not in the table


def fields_of_hf(config: Mapping) -> Fields:
    """The fields of transformers' preprocessor_config.json, read as a dict."""
    check(isinstance(config, Mapping), f"the preprocessor config must be a dict, got {shown(config)}")
    if "pretrained_cfg" in config:  # the processor that wraps a model of timm
        return fields_of_timm(config["pretrained_cfg"])
    kind = _kind(config)
    lacking = [key for key in NEEDED if config.get(key) is None]
    check(
        kind in HF_DEFAULTS or not lacking,
        f"the preprocessor config's class {short(kind) or 'is not named and'!s} is not one of {listed(HF_DEFAULTS)}, "
        f"so it needs the keys {listed(lacking)}",
    )
    for key in ("max_num_patches", "do_pad", "do_split_image"):
        check(not config.get(key), f"the preprocessor config has {key}, so its pictures have no fixed size")
    given = {key: value for key, value in config.items() if value is not None}
    get = ({"resample": 2} | _HF_COMMON | HF_DEFAULTS.get(kind, {}) | given).get

    target = _edges("size", get("size"), kind in EDGE_IS_SHORT)
    crop = _edges("crop_size", get("crop_size"), False) if get("do_center_crop") else None
    check(
        crop is None or "height" in crop, f"the preprocessor config's crop_size must have height and width, got {crop}"
    )
    short_edge = "shortest_edge" in target
    if not get("do_resize"):
        check(crop is not None, "the preprocessor config neither resizes nor crops: its pictures have no fixed size")
    elif short_edge:
        check(crop is not None, "the preprocessor config resizes the short edge and does not crop: no fixed size")
    last = target if crop is None else crop
    edge = target.get("shortest_edge")
    resized = (edge, edge) if short_edge else (target["height"], target["width"])
    mean, std = get("image_mean"), get("image_std")
    channels = max(len(value) if isinstance(value, (list, tuple)) else 0 for value in (mean, std)) or 3
    normalize = get("do_normalize")
    return dict(
        size=(last["height"], last["width"]),
        resize=("short_edge" if short_edge else "squash") if get("do_resize") else None,
        resize_size=resized if get("do_resize") else None,
        interpolation=_interpolation(get("resample")),
        crop=crop is not None,
        rounding="transformers",
        rescale=get("rescale_factor") if get("do_rescale") else 1.0,
        rescale_first=kind == "DINOv3ViT",
        mean=_per_channel("image_mean", mean, channels) if normalize else (0.0,) * channels,
        std=_per_channel("image_std", std, channels) if normalize else (1.0,) * channels,
        alpha="white" if get("do_convert_rgb") else "drop",
    )


def hf_of_fields(fields: Fields) -> Fields:
    """transformers' preprocessor_config.json for these fields, as a dict; its class is one that reads them all."""
    resize, resized, size = fields["resize"], fields["resize_size"], fields["size"]
    check(resize != "long_edge", "transformers has no such preprocessing: the long edge is resized, with a border")
    check(
        resize != "short_edge" or resized[0] == resized[1],
        f"transformers has no such preprocessing: the short edge is resized to cover {resized}, which is not square",
    )
    kind = "DINOv3ViT" if fields["rescale_first"] else "CLIP" if resize == "short_edge" else "ViT"
    kind = "DeiT" if kind == "ViT" and fields["crop"] else kind
    target = size if resized is None else resized
    unit = all(m == 0 for m in fields["mean"]) and all(s == 1 for s in fields["std"])
    return dict(
        image_processor_type=f"{kind}ImageProcessor",
        do_resize=resize is not None,
        size={"shortest_edge": target[0]} if resize == "short_edge" else {"height": target[0], "width": target[1]},
        resample=INTERPOLATIONS[fields["interpolation"]],
        do_center_crop=fields["crop"],
        crop_size={"height": size[0], "width": size[1]},
        do_rescale=fields["rescale"] != 1,
        rescale_factor=fields["rescale"],
        do_normalize=not unit,
        image_mean=list(fields["mean"]),
        image_std=list(fields["std"]),
        do_convert_rgb=fields["alpha"] == "white",
    )


def _kind(config: Mapping) -> str:
    """The class's name without what old and new versions of transformers add to it."""
    for key in TYPE_KEYS:
        name = config.get(key)
        if isinstance(name, str):
            for end in ("Fast", "Pil", "ImageProcessor", "FeatureExtractor"):
                name = name.removesuffix(end)
            return name
    return ""


def _edges(key: str, value, edge_is_short: bool) -> Fields:
    """A size of transformers as {"height", "width"} or {"shortest_edge"}."""
    name = f"the preprocessor config's {key}"
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        value = {"shortest_edge": value} if edge_is_short else _square(value)  # type: ignore[arg-type]
    if isinstance(value, (list, tuple)) and len(value) == 2:
        value = {"height": value[0], "width": value[1]}
    check(isinstance(value, Mapping), f"{name} must be a dict or a number, got {shown(value)}")
    edges = {edge: number for edge, number in value.items() if number is not None}
    check(
        set(edges) in ({"height", "width"}, {"shortest_edge"}),
        f"{name} must have height and width, or shortest_edge, got {shown(value)}",
    )
    return {edge: as_int(f"{name}: {edge}", number, maximum=1 << 15) for edge, number in edges.items()}


def _interpolation(code) -> str:
    names = {number: name for name, number in INTERPOLATIONS.items()}
    name = names.get(code) if isinstance(code, int) and not isinstance(code, bool) else code
    check(isinstance(name, str), f"the preprocessor config's resample must be from 0 to 5, got {shown(code)}")
    return str(name)


def _per_channel(name: str, value, channels: int) -> tuple[Size | float, ...]:
    """One number for each channel; a single one stands for all."""
    numbers = tuple(value) if isinstance(value, (list, tuple)) else (value,)
    numbers = numbers * channels if len(numbers) == 1 else numbers
    check(len(numbers) == channels, f"{name} must have {channels} numbers, one a channel, got {shown(value)}")
    return numbers
