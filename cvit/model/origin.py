"""Where a model's weights come from: the family and the style of the names that they had there."""

from __future__ import annotations

import json
from typing import NamedTuple

from ..base.errors import check, short


class Origin(NamedTuple):
    """What `save` needs in order to write a model in the names that it had.

    Attributes
    ----------
    family : str
        A name of `cvit.families`, such as "timm" or "hf_vit".
    style : tuple of str
        What of the names the configuration does not say, such as "packed"; sorted.
    """

    family: str
    style: tuple[str, ...] = ()

    def to_json(self) -> str:
        """Both as a JSON object."""
        return json.dumps({"family": self.family, "style": list(self.style)})

    @classmethod
    def from_json(cls, text: str) -> Origin:
        """What `to_json` wrote; anything else is a `ValueError`."""
        try:
            fields = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"the origin is not valid JSON: {short(error, 200)}") from None
        right = isinstance(fields, dict) and fields.keys() == {"family", "style"} and isinstance(fields["style"], list)
        right = right and all(isinstance(one, str) and len(one) < 100 for one in (fields["family"], *fields["style"]))
        check(right and len(fields["style"]) < 100, f"the origin must have family and style, got {short(repr(fields))}")
        return cls(fields["family"], tuple(sorted(fields["style"])))
