"""README.md keeps its word: its Python examples run as they are written, its signatures and variables are those of the
code."""

import importlib.util
import inspect
import re
from pathlib import Path

import pytest

import cvit

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_examples_run(tmp_path, monkeypatch):
    """One after the other, as a reader types them, beside the pictures and the model that they name: the later ones use
    names of the earlier."""
    monkeypatch.chdir(tmp_path)
    image_module = pytest.importorskip("PIL.Image")
    for label, colour in (("cat", "black"), ("dog", "white")):
        (tmp_path / "photos" / label).mkdir(parents=True)
        for size in range(20, 28):
            image_module.new("RGB", (size, 20), colour).save(tmp_path / "photos" / label / f"{size}.png")
    image_module.new("RGB", (30, 20), "grey").save("a.jpg")
    small = cvit.ViTConfig(image_size=16, patch_size=8, width=16, depth=2, heads=2, classes=5)
    cvit.ViT(small).save("vit_small.safetensors")
    names = {}
    for example in re.findall(r"```python\n(.*?)```", README, re.DOTALL):
        if "sklearn" not in example or importlib.util.find_spec("sklearn"):
            exec(compile(example, "README.md", "exec"), names)
    assert names["features"].shape == (1, names["config"].width)
    assert names["done"].folder == str(Path("runs/photos")) and len(names["done"].history.epochs) == 10


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
