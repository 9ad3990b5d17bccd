"""A configuration as JSON, in a format with a number, so that every file that was ever written can be read.

A file says which format it is of; one without the key "format" is of format 1. Each format has its own table of keys
and of the values that missing keys stand for. These tables never change: a default of `ViTConfig` may change later,
what an old file means may not. Whoever adds a field to `ViTConfig`, renames one or changes a default therefore

1. adds 1 to `FORMAT`, names in `READER` the first release that reads the new format,
2. adds the new format's table to `DEFAULTS` and what turns the fields of the format before into its own to `UPGRADES`,
3. records a model file of the format before (tests/data/record_model.py), which the tests load from then on.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from ..base.errors import check, listed, short

Fields = dict[str, Any]

FORMAT = 4
READER = "0.1.0"  # the first release of cvit-cpu that reads `FORMAT`

_FORMAT_1: Fields = dict(
    image_size=(224, 224), patch_size=16, channels=3, width=192, depth=12, heads=3, hidden=0, classes=1000, pool="cls",
    bias=True, norm_affine=True, final_norm=True, gelu="tanh", eps=1e-6,
)  # fmt: skip
_SINCE_2: Fields = dict(
    activation="gelu_tanh", gated=False, layer_scale=None, class_token=None, dist_token=False, registers=0,
    pos_tokens="all",
)  # fmt: skip
_FORMAT_2: Fields = {name: value for name, value in _FORMAT_1.items() if name != "gelu"} | _SINCE_2
_SINCE_3: Fields = dict(
    patch_bias=None, patch_norm=False, pre_norm=False, norm="layer", norm_eps=(), block="pre", rope=None, qkv_bias=None,
    qk_norm=False, attn_norm=False, proj_bias=None, mlp_bias=None, mlp_norm=False, fc_norm=False, pool_heads=0,
    pool_hidden=0, pool_prefix=True, pool_query=True, pool_bias=None, pre_logits=0, pre_logits_activation="tanh",
    head_bias=None, dist_head=False,
)  # fmt: skip
_FORMAT_3: Fields = _FORMAT_2 | _SINCE_3
_FORMAT_4 = _FORMAT_3  # the fields are the same: since format 4 a model's file has a checksum
DEFAULTS: dict[int, Fields] = {1: _FORMAT_1, 2: _FORMAT_2, 3: _FORMAT_3, 4: _FORMAT_4}


def _from_1(fields: Fields) -> Fields:
    fields = {**fields, **_SINCE_2}
    gelu = fields.pop("gelu")
    check(gelu in ("tanh", "erf"), f"config: gelu must be 'tanh' or 'erf', got {short(repr(gelu))}")
    return {**fields, "activation": f"gelu_{gelu}"}


# UPGRADES[n] turns the fields of format n, all of which are there, into those of format n + 1.
UPGRADES: dict[int, Callable[[Fields], Fields]] = {
    1: _from_1,
    2: lambda fields: {**fields, **_SINCE_3},
    3: lambda fields: fields,
}


def write(fields: Fields) -> str:
    """The fields of a configuration as a JSON object of format `FORMAT`."""
    return json.dumps({"format": FORMAT, "reader": READER, **fields})


def number(text: str) -> int:
    """The format that a text which `read` accepts is of."""
    return json.loads(text).get("format", 1)


def read(text: str) -> Fields:
    """The fields of a configuration in today's format, from a JSON object of this or any earlier one.

    Raises
    ------
    ValueError
        The text is no JSON object, has a key that its format does not know, or is of a later format. Format 1 must have
        all of its keys, since its files always do.
    """
    try:
        fields = json.loads(text)
    except (
        ValueError,
        TypeError,
        RecursionError,
    ) as error:  # ValueError: not JSON, or an integer of thousands of digits
        raise ValueError(f"config is not valid JSON: {short(error, 200)}") from None
    check(isinstance(fields, dict), f"config must be a JSON object, got {short(repr(fields))}")
    found, reader = fields.pop("format", 1), fields.pop("reader", None)
    check(
        isinstance(found, int) and not isinstance(found, bool) and found >= 1,
        f"config: format must be a whole number of at least 1, got {short(repr(found))}",
    )
    if found > FORMAT:
        needed = f"cvit-cpu {short(reader)} or later" if reader else "a later cvit-cpu"
        raise ValueError(f"config is of format {short(found)}, which {needed} reads; this one reads up to {FORMAT}")
    known = DEFAULTS[found]
    unknown, missing = fields.keys() - known.keys(), known.keys() - fields.keys()
    check(not unknown, f"config has keys that format {found} does not know: {listed(unknown)}")
    check(
        found > 1 or not missing, f"config must be a JSON object with all keys of format 1, it lacks {listed(missing)}"
    )
    fields = {**known, **fields}
    for step in range(found, FORMAT):
        fields = UPGRADES[step](fields)
    return fields
