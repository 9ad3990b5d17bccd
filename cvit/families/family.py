"""What a family of models is: the names of its tensors, as a table of rows, and how its options are read off a file.

A family is one file of this package with a subclass of `Family` and an instance of it in `FAMILIES` of __init__.py. Its
rows are used for reading and for writing:

    Row("blocks.{i}.attn.qkv.weight", "blocks.{i}.attn.q.weight", LINEAR)
    Row("blocks.{i}.attn.qkv.weight", "blocks.{i}.attn.k.weight", LINEAR)
    Row("blocks.{i}.attn.qkv.weight", "blocks.{i}.attn.v.weight", LINEAR)

Rows of one name of theirs are its pieces, one behind the other along `how.axis`. `{i}` is the block; a row that has it
only in our name is there once for each block: a tensor that theirs stacks over the blocks.
"""

from __future__ import annotations

import abc
import dataclasses
import difflib
import functools
import itertools
import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from ..base.errors import check, short
from ..model.config import ViTConfig
from .transform import Transformation

# Parts that no configuration has, by what their tensors are called in any library.
UNKNOWN_PARTS = (
    (r"relative_position_bias|rel_pos|relative_position_index", "relative position bias"),
    (r"lambda_q1|lambda_k1|lambda_init", "differential attention"),
    (r"patch_embed\.backbone\.|^conv_proj\.(?!weight|bias)|conv_stem|embedder\.bit", "a convolutional stem"),
)


@dataclasses.dataclass(frozen=True)
class Row:
    """A tensor of theirs, or a piece of it, and the tensor of ours that it is; ours is "" where we lack it."""

    theirs: str
    ours: str
    how: Transformation

    def at(self, i: int) -> Row:
        """The row of block i."""
        return Row(self.theirs.replace("{i}", str(i)), self.ours.replace("{i}", str(i)), self.how)


def expanded(rows: Iterable[Row], depth: int) -> dict[str, list[Row]]:
    """Rows by the name there, in the order of the pieces, each block's with its number."""
    by_name: dict[str, list[Row]] = {}
    for row in rows:
        of_block = "{i}" in row.theirs or "{i}" in row.ours
        for one in [row.at(i) for i in range(depth)] if of_block else [row]:
            by_name.setdefault(one.theirs, []).append(one)
    return by_name


@dataclasses.dataclass(frozen=True)
class Given:
    """What is known of a file before its numbers are read.

    Attributes
    ----------
    shapes : mapping of name to shape
        With the family's own spelling of the names.
    json : mapping
        The file config.json beside the weights; empty where there is none.
    num_heads : int or None
    image_size : (int, int) or None
        As asked for.
    """

    shapes: Mapping[str, tuple[int, ...]]
    json: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    num_heads: int | None = None
    image_size: tuple[int, int] | None = None

    def has(self, *names: str) -> bool:
        """Whether one of these tensors is there."""
        return any(name in self.shapes for name in names)

    def shape(self, name: str, rank: int) -> tuple[int, ...]:
        """The shape of a tensor that must be there and have `rank` axes."""
        if name not in self.shapes:
            raise ValueError(f"the file lacks {name}{closest(name, self.shapes)}")
        shape = tuple(self.shapes[name])
        check(len(shape) == rank, f"{name} must have {rank} dimensions, got shape {shape}")
        check(min(shape) > 0, f"{name} must have no empty dimension, got shape {shape}")
        return shape

    def blocks(self, pattern: str) -> int:
        """How many blocks there are: the numbers at {i} of `pattern`, the beginning of a name."""
        head, _, tail = pattern.partition("{i}")
        number = re.compile(re.escape(head) + r"(\d+)" + re.escape(tail))
        return len({found.group(1) for found in map(number.match, self.shapes) if found})


def closest(name: str, known: Iterable[str]) -> str:
    """The known name most like `name`, for a message; "" where none is like it."""
    near = difflib.get_close_matches(name, list(itertools.islice(known, 4096)), n=1, cutoff=0.6)
    return f" (closest: {short(near[0])})" if near else ""


class Family(abc.ABC):
    """A family of models of one library. Every method has a default but `config` and `rows`.

    Attributes
    ----------
    name : str
        What `write` is asked for, such as "timm".
    marks : tuple of str
        Names that every file of this family has, in its own spelling. A file without config.json is of the first
        family whose marks it has.
    prefixes : tuple of str
        What may stand before every name, such as "vit."; the longest that fits every such name is taken off.
    aliases : tuple of (pattern, replacement)
        Other spellings of names as regular expressions for `re.sub`, applied to each name in this order.
    ignored : tuple of patterns
        Names that are read over, as regular expressions that match from the beginning (`re.match`).
    position_resampling : str
        The rule of `positions.RULES` for another image size.
    follows_pictures : bool
        Whether the library itself takes pictures of any size and resamples positions for them as they come: then a
        model is loaded at the size that its preprocessing makes.
    """

    name: str = ""
    marks: tuple[str, ...] = ()
    prefixes: tuple[str, ...] = ()
    aliases: tuple[tuple[str, str], ...] = ()
    ignored: tuple[str, ...] = ()
    position_resampling: str = "bicubic antialias"
    follows_pictures: bool = False

    # ------------------------------------------------------------------------------------------------ what to define
    @abc.abstractmethod
    def config(self, given: Given) -> ViTConfig:
        """The configuration of a file, at the image size that its tensors have: read off names, shapes, config.json."""

    @abc.abstractmethod
    def rows(self, config: ViTConfig, style: frozenset[str] = frozenset()) -> list[Row]:
        """The table of names for a configuration. `style` is what the configuration does not say, such as "packed"."""

    def claims(self, json: Mapping[str, Any]) -> bool:
        """Whether config.json says that the file is of this family."""
        return False

    def style(self, given: Given) -> frozenset[str]:
        """The style of a file that is read."""
        return frozenset()

    def style_for(self, config: ViTConfig) -> frozenset[str]:
        """The style in which `write` writes."""
        return frozenset()

    def refuse(self, given: Given) -> str | None:
        """Which part of this model cvit does not compute, None where there is none."""
        return None

    def most_blocks(self, given: Given) -> int:
        """How many blocks a file of these tensors may have at most."""
        return len(given.shapes)

    def config_json(self, config: ViTConfig, style: frozenset[str]) -> dict[str, Any]:
        """What config.json must say for the family's own library to read what is written."""
        return {}

    def file_name(self, name: str, config: ViTConfig) -> str:
        """What a tensor of this family's spelling is called in a file that is written: with the prefix, if any."""
        return name

    def computed(self, config: ViTConfig, style: frozenset[str]) -> Mapping[str, np.ndarray]:
        """Tensors of ours that no file of this style has, since theirs computes them: fixed positions."""
        return {}

    def preprocessing(self, given: Given) -> dict[str, Any]:
        """How pictures become arrays: for a family of transformers keys of its preprocessor's config, for one of timm
        those of its pretrained_cfg, else fields of `Preprocessing`, of which `size` may be left out."""
        return {}

    # ------------------------------------------------------------------------------------------------ what follows
    def spelling(self, names: Iterable[str]) -> dict[str, str]:
        """The names in this family's spelling, by the file's; ignored ones and those of other parts are left out."""
        names = list(names)
        prefix = ""
        for one in sorted(self.prefixes, key=len, reverse=True):
            if any(name.startswith(one) for name in names):
                prefix = one
                break
        ours = {}
        for name in names:
            plain = name.removeprefix(prefix)
            for pattern, replacement in self._aliases:
                plain = pattern.sub(replacement, plain)
            if not any(pattern.match(plain) for pattern in self._ignored):
                ours[name] = plain
        return ours

    def has_marks(self, names: Iterable[str]) -> bool:
        """Whether these names, in the file's spelling, have the family's marks."""
        return bool(self.marks) and set(self.marks) <= set(self.spelling(names).values())

    @functools.cached_property
    def _aliases(self) -> list[tuple[re.Pattern[str], str]]:
        return [(re.compile(pattern), replacement) for pattern, replacement in self.aliases]

    @functools.cached_property
    def _ignored(self) -> list[re.Pattern[str]]:
        return [re.compile(pattern) for pattern in self.ignored]


def whole_patches(size: tuple[int, int], patch: tuple[int, int]) -> tuple[int, int]:
    """Height and width of the pixels that whole patches fill: a convolution leaves out the rest, right and below."""
    return size[0] // patch[0] * patch[0], size[1] // patch[1] * patch[1]


def unknown_part(names: Iterable[str]) -> str | None:
    """The part of a model, told by the names of its tensors, that cvit does not compute."""
    for pattern, reason in UNKNOWN_PARTS:
        found = next((name for name in names if re.search(pattern, name)), None)
        if found is not None:
            return f"{reason} ({short(found)})"
    return None
