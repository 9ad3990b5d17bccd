"""README.md keeps its word: its Python examples run as they are written, its signatures and variables are those of the
code."""

import inspect
import re
from pathlib import Path

import cvit

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_examples_run(tmp_path, monkeypatch):
    """One after the other, as a reader types them: the later ones use names of the earlier."""
    monkeypatch.chdir(tmp_path)
    examples = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(examples[0].splitlines()) <= 10
    names = {}
    for example in examples:
        exec(compile(example, "README.md", "exec"), names)
    assert names["features"].shape == (1, names["config"].width)


def test_the_signatures():
    signatures = re.findall(r"^(\w+)\(([\w, ]+)\) +# ", README, re.MULTILINE)
    assert {name for name, _ in signatures} == {"patch_embed_with_cls", "vit_block", "vit_classify", "vit_train_step"}
    for name, arguments in signatures:
        assert list(inspect.signature(getattr(cvit, name)).parameters) == arguments.split(", "), name


def test_the_environment_variables():
    sources = [ROOT / "setup.py", *ROOT.glob("cvit/**/*.py"), ROOT / "tests" / "checks.py"]
    lines = [line for path in sources for line in path.read_text(encoding="utf-8").splitlines() if "environ" in line]
    assert set(re.findall(r"^\| `(CVIT_\w+)", README, re.MULTILINE)) == set(
        re.findall(r'"(CVIT_\w+)"', "\n".join(lines))
    )
