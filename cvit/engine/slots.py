"""What a plan reads off a program's steps: products, slots that share their gradient, gradients that are sums."""

from __future__ import annotations

from .program import (
    PACKED,
    Activation,
    Drop,
    HeadNorm,
    Heads,
    Hidden,
    Linear,
    Norm,
    Rotate,
    added_by,
    source_of,
    target_of,
)

BRANCH = "branch"  # of a class of slots: residual branches before they are dropped and added, one at a time


def bytes_of(offset, size):
    """An offset in bytes; -1 stays, a weight that the model lacks."""
    return offset * size if offset >= 0 else -1


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


def classes_of(sections):
    """Slots whose gradient is one: name -> the name that stands for its class."""
    roots: dict[str, str] = {}

    def root(name):
        while roots.setdefault(name, name) != name:
            name = roots[name]
        return name

    for part in parts_of(sections):
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
            whole |= {part.target, part.add} if added_by(part) else set()
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


def accumulating(sections, last):
    """For each section a list: whether the backward of each step adds to its source's gradient, which another step
    behind it has begun. `last` is the slot whose gradient the group is given."""
    roots = classes_of(sections)
    begun = {(roots.get(last, last), 0)}
    flags = [[False] * len(section) for section in sections]
    for section, its_flags in zip(reversed(sections), reversed(flags)):
        for i in range(len(section) - 1, -1, -1):
            part = section[i]
            source = (roots.get(source_of(part), source_of(part)), getattr(part, "source_column", 0))
            if isinstance(part, Norm) and part.target == PACKED:  # the slot of several norms, each with its readers
                begun.discard((PACKED, 0))
            its_flags[i] = source in begun
            begun.add(source)
    return flags


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
