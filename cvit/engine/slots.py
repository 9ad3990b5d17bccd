"""What a plan reads off a program's steps: products, slots that share their gradient, gradients that are sums.

All of it follows from the program alone, so `outline_of` reads it once, for plans of every batch size and mode.
"""

from __future__ import annotations

import functools

from .program import (
    PACKED,
    Activation,
    Drop,
    HeadNorm,
    Heads,
    Hidden,
    Linear,
    Norm,
    Program,
    Rotate,
    added_by,
    fuse,
    source_of,
    target_of,
)

BRANCH = "branch"  # of a class of slots: residual branches before they are dropped and added, one at a time


def parts_of(sections):
    return [part for section in sections for part in section]


def linears_of(parts):
    """The products of a section, in order."""
    products = []
    for part in parts:
        if isinstance(part, Hidden):
            products += [part.first, part.second]
        elif isinstance(part, Linear):
            products.append(part)
    return products


def first_weight(block):
    """The offset of a block's first weight."""
    steps = (*block.before, *block.after)
    offsets = [part.scale for part in steps if isinstance(part, Norm)]
    offsets += [matrix.weight for part in steps if isinstance(part, Linear) for matrix in part.matrices]
    return min(offset for offset in offsets if offset >= 0)


def classes_of(parts):
    """Slots whose gradient is one: name -> the name that stands for its class."""
    roots: dict[str, str] = {}

    def root(name):
        while roots.setdefault(name, name) != name:
            name = roots[name]
        return name

    for part in parts:
        if isinstance(part, Heads):
            roots[root(part.source)], roots[root(part.target)] = root(part.source), root(part.target)
            continue
        if added_by(part):
            roots[root(target_of(part))] = root(added_by(part))
            if isinstance(part, Drop):
                roots[root(part.source)] = root(BRANCH)
        elif isinstance(part, Activation):
            roots[root(part.target)] = root(part.source)
    if "x" in roots and "y" in roots:
        roots[root("y")] = root("x")
    return {name: root(name) for name in roots}


def half_slots(sections):
    """The slots of these steps that are bfloat16 where a table keeps such rows (`half` of csrc/cvit.h): those that
    products, heads and activations alone write and read.

    A product rounds what it reads to bfloat16 anyhow, so a result that goes to products alone loses nothing by being
    stored like that, and heads and activations take what a product made as it would be stored. What a norm or a
    rotation reads, or what is added to something, is float32. It follows from the program as the model gives it, before
    anything is fused, and is the same in training and in inference, so that both compute the same bits.
    """
    half, whole = set(), {"x", "y"}
    for part in parts_of(sections):
        own = {part.source, part.target}
        if isinstance(part, (Linear, Activation, Heads)) or (isinstance(part, Drop) and len(own) == 1):
            half |= own
            whole |= {part.target, added_by(part)} if added_by(part) else set()
        else:
            whole |= own | {added_by(part)}
    return half - whole


def sums_of(part):
    """How many values each sum of a part's gradients has that units of rows have their own parts of."""
    if isinstance(part, Norm):
        return (part.width, part.width)
    if isinstance(part, HeadNorm):
        return (part.width,) * 4
    if isinstance(part, Rotate) and part.frequencies >= 0:
        return (part.heads * part.width,)
    return ()


def sum_targets(part):
    """The offset of the weight that each sum is the gradient of."""
    if isinstance(part, Norm):
        return (part.scale, part.shift)
    if isinstance(part, HeadNorm):
        return (*part.scales, *part.shifts)
    return (part.frequencies,) if isinstance(part, Rotate) else ()


def accumulating(sections, classes, last):
    """For each section a list: whether the backward of each step adds to its source's gradient, which another step
    behind it has begun. `last` is the slot whose gradient the group is given."""
    begun = {(classes.get(last, last), 0)}
    flags = [[False] * len(section) for section in sections]
    for section, its_flags in zip(reversed(sections), reversed(flags)):
        for i in range(len(section) - 1, -1, -1):
            part = section[i]
            source = (classes.get(source_of(part), source_of(part)), getattr(part, "source_column", 0))
            if isinstance(part, Norm) and part.target == PACKED:  # the slot of several norms, each with its readers
                begun.discard((PACKED, 0))
            its_flags[i] = source in begun
            begun.add(source)
    return flags


def widths_of(parts, training):
    """name -> width of every slot that these steps write."""
    widths: dict[str, int] = {}

    def wide(name, width):
        widths[name] = max(widths.get(name, 0), width)

    for part in parts:
        if isinstance(part, Hidden):
            for matrix in part.first.matrices if training else ():  # kept whole for the backward alone
                wide(part.first.target, matrix.column + part.first.n)
            wide(part.second.target, part.second.n)
        elif isinstance(part, Linear):
            for matrix in part.matrices:
                wide(part.target, matrix.column + part.n)
        elif isinstance(part, HeadNorm):
            wide(part.target, 3 * part.heads * part.width)
        elif isinstance(part, Activation):
            wide(part.target, part.n)
        elif isinstance(part, (Norm, Heads, Drop)) and part.target != PACKED:
            wide(part.target, part.width)
    return widths


def between(sections, training):
    """(name, width) of the slots that one section writes and a later one reads."""
    read = {source_of(part) for part in parts_of(sections[1:])}
    return [(name, width) for name, width in widths_of(parts_of(sections[:-1]), training).items() if name in read]


def kept_of(parts, widths):
    """What these steps keep for their backward: name -> (how often the group's rows, width), and the same of the norms'
    statistics."""
    normalised = {part.source for part in parts if isinstance(part, Norm)}
    elsewhere = {"y"} | {part.source for part in parts if isinstance(part, Drop) and part.add}
    kept, stats = {}, {}
    for part in parts:
        if isinstance(part, Hidden):
            kept[part.first.target] = (1, widths[part.first.target])
            if part.second.target not in elsewhere:
                kept[part.second.target] = (1, part.second.n)
            continue
        keeps = not isinstance(part, (Norm, Activation, Drop)) or added_by(part) or part.target in normalised
        if keeps and part.target not in elsewhere:
            kept[part.target] = (1, widths.get(part.target, 0))
        if isinstance(part, Norm):
            stats[f"stats {part.name}"] = (2, 1)
        elif isinstance(part, HeadNorm):
            stats[f"stats {part.name}"] = (2, 2 * part.heads)
        elif isinstance(part, Heads):
            kept["lse"] = (part.heads, 1)
    return kept, stats


def kept_source(before, name, values):
    """The slot from which the backward gets the rows `name` again, and the norm to apply to them or None.

    `before` are the parts ahead of the reader; the last of them that wrote the slot counts.
    """
    for part in reversed(before):
        if target_of(part) != name or name in values or isinstance(part, Drop):
            continue
        if isinstance(part, Norm):
            return part.source, part
        if isinstance(part, Activation):
            return part.source, None  # whose backward leaves the activated rows in their place, dropped where they were
    return name, None


def reads_of(part):
    column = getattr(part, "source_column", 0)
    return source_of(part), column, target_of(part), added_by(part)


class Group:
    """Steps that run one after the other on the same rows, section by section. The gradient of the slot `last` is given
    to them, or they begin it."""

    def __init__(self, sections, last):
        self.sections, self.parts = sections, parts_of(sections)
        self.products = [linears_of(section) for section in sections]
        # Of each step what it reads, from which column on, what it writes and what it adds.
        self.reads = [[(part, *reads_of(part)) for part in section] for section in sections]
        self.classes = classes_of(self.parts)
        self.accumulating = accumulating(sections, self.classes, last)
        self.widths = {training: widths_of(self.parts, training) for training in (False, True)}
        self.between = {training: between(sections, training) for training in (False, True)}
        self.kept, self.stats = kept_of(self.parts, self.widths[True])
        self.sums = [[sum(sums_of(part)) for part in section] for section in sections]
        # Slots that others share their place with: branches that are dropped where they are added, residual streams.
        self.dropped = [(part.source, part.target) for part in self.parts if isinstance(part, Drop) and part.add]
        self.streams = [target_of(part) for part in self.parts if added_by(part)]
        self.inside = {part.first.target for part in self.parts if isinstance(part, Hidden)}
        self.widest_norm = max((part.width for part in self.parts if isinstance(part, Norm)), default=0)
        sizes = [
            [(part.name, part.k, part.n, len(part.matrices), part.layer_scale >= 0) for part in products]
            for products in self.products
        ]
        names = [[(type(part), *slots) for part, *slots in section] for section in self.reads]
        # What their memory follows from, but for its place: that of groups with the same is the same.
        self.shape = (names, sizes, self.widths, self.kept, self.stats, self.widest_norm)


class Outline:
    """A program's groups, with or without its rewritings, and what a plan needs to know of all blocks."""

    def __init__(self, program, fused):
        rewritten = fuse if fused else tuple
        blocks = [(block.before, (block.heads,), block.after) for block in program.blocks]
        self.blocks = [Group((rewritten(before), heads, rewritten(after)), "y") for before, heads, after in blocks]
        # The blocks that are not like the one before them, and the first.
        self.kinds = [i for i, block in enumerate(self.blocks) if i == 0 or block.shape != self.blocks[i - 1].shape]
        self.outside = {
            "before": Group((rewritten(program.before),), "x"),
            "after": Group((rewritten(program.after),), "kv"),
            "query": Group((tuple(program.query),), "query"),
            "end": Group((rewritten(program.end),), program.features),
        }
        sections = [section for block in blocks for section in block]
        self.half = half_slots(sections)
        self.first_weights = [first_weight(block) for block in program.blocks]
        self.heads = max((block.heads.heads for block in program.blocks), default=1)
        self.head_width = max((block.heads.width // block.heads.heads for block in program.blocks), default=1)
        self.heads_width = max((block.heads.width for block in program.blocks), default=0)
        rows = (*parts_of(sections), *program.before, *program.after)
        self.flops = sum(part.flops for part in rows if isinstance(part, Linear))  # of a row


@functools.lru_cache(maxsize=128)
def outline_of(program: Program, fused: bool) -> Outline:
    return Outline(program, fused)
