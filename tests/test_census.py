"""The census tells apart what is equal, refused and wrong, and its table stands in the docs."""

import dataclasses
import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from checks import peer

from cvit.families import FAMILIES
from cvit.families.census.hf_cases import ALL, REFUSED
from cvit.families.timm_table import TABLE

DOCS = (Path(__file__).parent.parent / "docs" / "families.md").read_text(encoding="utf-8")
# One of each of timm's block kinds, poolings, positions; the tests of the families have many more.
TIMM = (
    "aimv2_large_patch14_224", "beit3_base_patch16_224", "deit_tiny_distilled_patch16_224", "deit3_small_patch16_224",
    "eva02_base_patch14_448", "test_vit3", "vit_base_patch16_18x2_224", "vit_base_patch16_rope_mixed_224",
    "vit_base_patch16_rpn_224", "vit_base_patch16_xp_224", "vit_pe_core_gigantic_patch14_448",
)  # fmt: skip


@pytest.fixture(scope="module")
def candidates():
    """Every candidate by its name; the peers are needed for nothing else here."""
    peer("torch")
    modules = [peer(f"cvit.families.census.{of}_models") for of in ("timm", "torchvision", "hf")]
    every = [candidate for module in modules for candidate in module.candidates()]
    by_name = {candidate.name: candidate for candidate in every}
    assert len(by_name) == len(every)
    return by_name


def judge(candidate):
    return peer("cvit.families.census.compare").judge(candidate)


@pytest.mark.parametrize("name", [*TIMM, "vit_b_32", "vit_h_14", "vit_b_16, representation_size"])
def test_equal(candidates, name):
    verdict = judge(candidates[name])
    assert verdict.verdict == "equal", verdict.reason
    assert 0 < verdict.error < 1e-5
    assert verdict.gradient is None or 0 < verdict.gradient < 1e-4


def test_every_class_of_transformers(candidates):
    """Equal, or refused with the part that the tests of the families name."""
    verdicts = [judge(one) for one in candidates.values() if one.group.startswith("transformers")]
    assert [one.name + one.reason for one in verdicts if one.verdict == "wrong"] == []
    refused = [one.reason for one in verdicts if one.verdict == "refused"]
    assert len(refused) == len(REFUSED)
    assert all(re.search(part, reason) for (_, part), reason in zip(REFUSED, refused))


@pytest.mark.parametrize(
    "name, part",
    {
        "vit_dwee_patch16_reg1_gap_256": "differential attention",
        "vit_large_patch16_sapiens2": "grouped-query attention",  # in blocks that are not among the first two
        "test_vit_relpos": "relative position bias",
        "beit_base_patch16_224": "relative position bias",
        "vit_base_r26_s32_224": "a convolutional stem",
        "vit_b_16, convolutional stem": "a convolutional stem",
    }.items(),
)
def test_refused(candidates, name, part):
    verdict = judge(candidates[name])
    assert verdict.verdict == "refused"
    assert verdict.reason.startswith(part)


WRONG = {  # what is read wrongly, and what the verdict says
    "activation": (dict(activation="gelu_tanh"), "block 0 off by"),
    "eps": (dict(eps=1e-5), "block 0 off by"),
    "order of tokens": (dict(pool="mean"), "features off by"),
}


@pytest.mark.parametrize("fault", WRONG)
def test_what_is_read_wrongly_is_wrong(candidates, monkeypatch, fault):
    change, message = WRONG[fault]
    candidate = candidates["vit_tiny_patch16_224"]
    load = candidate.load

    def wrongly():
        model = load()
        fields = {**change, "class_token": 1}
        return model._replace(config=dataclasses.replace(model.config, **fields))

    monkeypatch.setattr(candidate, "load", wrongly)
    verdict = judge(candidate)
    assert verdict.verdict == "wrong"
    assert message in verdict.reason


def test_wrong_gradients_and_wrong_files_are_wrong(candidates, monkeypatch):
    candidate = candidates["vit_tiny_patch16_224"]
    monkeypatch.setattr(candidate, "logits", lambda config, x: 1.01 * type(candidate).logits(candidate, config, x))
    assert "gradient of" in judge(candidate).reason
    monkeypatch.undo()
    monkeypatch.setattr(candidate, "returned", lambda model: [("it", np.zeros(1), np.ones(1))])
    assert judge(candidate).reason == "it is written differently"
    monkeypatch.setattr(candidate, "load", lambda: 1 / 0)
    assert judge(candidate).reason == "is not read: ZeroDivisionError: division by zero"


def test_the_command(candidates, capsys, monkeypatch):
    monkeypatch.setattr(peer("torch"), "set_num_threads", lambda threads: None)  # cvit's OpenMP may be the same
    main = peer("cvit.families.census.__main__").main
    assert main(["--only", "test_vit*"]) == 0
    table = capsys.readouterr().out
    assert re.search(r"^all +5 +4 +1 +0 ", table, re.MULTILINE)
    assert main(["--only", "test_vit2", "--json"]) == 0
    (verdict,) = json.loads(capsys.readouterr().out)["verdicts"]
    assert (verdict["group"], verdict["name"], verdict["verdict"]) == ("timm vision_transformer", "test_vit2", "equal")
    compare = peer("cvit.families.census.compare")
    monkeypatch.setattr(compare, "BOUND", 0.0)
    assert main(["--only", "test_vit2"]) == 1
    assert "WRONG    timm vision_transformer: test_vit2: block 0 off by" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["--only", "nothing"])


# ------------------------------------------------------------------------------------------------------- docs
def recorded():
    """{row: (names, equal, refused, wrong)} of the table in the docs."""
    rows = re.findall(r"^\| ([\w. ]+) \| (\d+) \| (\d+) \| (\d+) \| (\d+) \|", DOCS, re.MULTILINE)
    return {name: tuple(map(int, numbers)) for name, *numbers in rows}


def test_the_recorded_table_has_every_name():
    """The names that cvit knows of timm and transformers, and nothing is wrong."""
    table = recorded()
    assert all(wrong == 0 and names == equal + refused for names, equal, refused, wrong in table.values())
    total = tuple(map(sum, zip(*[row for name, row in table.items() if name != "all"])))
    assert table["all"] == total
    for kind, modules in {"vit": ("vision_transformer", "deit"), "eva": ("eva",)}.items():
        names = sum(len(names.split()) for _, names in TABLE[kind])
        refused = sum(len(names.split()) for fields, names in TABLE[kind] if "refused" in fields)
        rows = [table[f"timm {module}"] for module in modules]
        assert sum(row[0] for row in rows) == names
        grouped = 4 if kind == "eva" else 0  # queries, in blocks that the table does not look at
        assert sum(row[2] for row in rows) == refused + grouped
    families = Counter(case.family.removeprefix("hf_") or "others" for case in ALL)
    rows = {
        name.removeprefix("transformers "): row[0] for name, row in table.items() if name.startswith("transformers ")
    }
    assert rows == families


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_the_docs_describe_every_family(family):
    """By its name, with its rule for other image sizes."""
    rows = [line for line in DOCS.splitlines() if line.startswith(f"| `{family.name}` ")]
    assert len(rows) == 1
    assert family.name == "hf_refused" or f"| {family.position_resampling} |" in rows[0]
    kinds = {case.kind for case in ALL if case.family == family.name}
    assert all(f"`{kind}`" in DOCS for kind in kinds)
