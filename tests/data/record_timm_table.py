"""Writes cvit/families/timm_table.py: what tensors do not say of each of timm's architectures, read off its modules.

python tests/data/record_timm_table.py > cvit/families/timm_table.py
"""

import pprint
import textwrap

from cvit.families import reading, timm_module, timm_table
from cvit.families.census import timm_models

HEAD = '''"""What tensors do not say of timm's architectures: the rest of their configurations, by name.

Written by tests/data/record_timm_table.py from timm {version}: do not edit. Fields are those of `ViTConfig`, but for
`style` (see `Family.style`) and `refused`, the part that cvit does not compute. Without `heads` there are width / 64;
without other fields they are as names and shapes say (cvit/families/timm_vit.py).
"""

from __future__ import annotations

from typing import Any

TABLE: dict[str, list[tuple[dict[str, Any], str]]] = {{
'''
TAIL = '''

def architecture(table: str, name: Any) -> dict[str, Any] | None:
    """Fields of the configuration of timm's architecture `name` that its tensors do not say; None if unknown."""
    for fields, names in TABLE[table]:
        if name in names.split():
            return fields
    return None
'''


def entry(name, table):
    """What the table says of a name."""
    module = timm_models.empty(name)
    family = timm_module.family_of(module)
    assert family.table == table
    timm_table.TABLE = {"vit": [({}, name)], "eva": [({}, name)]}
    shapes = {key: tuple(tensor.shape) for key, tensor in module.state_dict().items()}
    try:
        config, style = timm_module.describe(module)
    except ValueError as error:
        return dict(refused=str(error).removeprefix("the module has a part that cvit does not compute: "))
    plain, _ = reading.given(
        family, shapes, {"architecture": name}, config.heads, None if "pos_embed" in shapes else config.image_size
    )
    said, fields = reading.configuration(family, plain), {}
    for field in config.__dataclass_fields__:
        if field != "class_token" and getattr(config, field) != getattr(said, field):  # that one the tensors do say
            fields[field] = getattr(config, field)
    if "pos_embed" not in shapes:
        fields["image_size"] = config.image_size
    if config.heads != config.width / 64 and not config.qk_norm:
        fields["heads"] = config.heads
    rope = fields.get("rope")
    if rope is not None:
        fresh = type(rope)()
        fields["rope"] = {
            k: getattr(rope, k) for k in rope.__dataclass_fields__ if getattr(rope, k) != getattr(fresh, k)
        }
    rest = style - family.style(plain)
    if rest:
        fields["style"] = tuple(sorted(rest))
    return fields


def table():
    """{table: [(fields, names)]} for all names, those of equal fields together."""
    found = {"vit": {}, "eva": {}}
    for name in timm_models.names():
        kind = "eva" if name in timm_models.names("eva") else "vit"
        fields = entry(name, kind)
        found[kind].setdefault(repr(sorted(fields.items())), (fields, []))[1].append(name)
    return {kind: [(fields, " ".join(names)) for fields, names in rows.values()] for kind, rows in found.items()}


def main():
    print(HEAD.format(version=timm_models.timm.__version__), end="")
    for kind, rows in table().items():
        print(f'    "{kind}": [')
        for fields, names in rows:
            print(f"        ({pprint.pformat(fields, width=100, sort_dicts=False)}, '''")
            print(textwrap.fill(names, 112, initial_indent=" " * 8, subsequent_indent=" " * 8, break_on_hyphens=False))
            print("        '''),")
        print("    ],")
    print("}")
    print(TAIL, end="")


if __name__ == "__main__":
    main()
