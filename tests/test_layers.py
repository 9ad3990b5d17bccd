"""The packages are layers: imports, Python's and Cython's, go down only. csrc knows no model. Files stay short.

The imports are read from the text of every file, inside functions and under TYPE_CHECKING as well: what a file names
is what its reader has to know.
"""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

_MODELS = ["families", "model", "pictures", "engine", "base"]
BELOW = {  # what each package may import, besides itself
    "base": [],
    "engine": ["base"],
    "ops": ["engine", "base"],
    "pictures": ["base"],
    "model": ["pictures", "engine", "base"],
    "families": ["model", "engine", "base"],
    "formats": _MODELS,
    "parallel": ["engine", "base"],
    "data": ["pictures", "model", "engine", "base"],
    "train": ["formats", "data", "parallel", *_MODELS],
    "plots": ["train", "formats", "data", *_MODELS],
    "runs": ["plots", "train", "formats", "data", "parallel", *_MODELS],
    "bench": ["train", "formats", "data", "ops", *_MODELS],
    "estimator": ["train", "formats", "data", "ops", *_MODELS],
    "cli": ["bench", "runs", "plots", "train", "formats", "data", "parallel", "ops", *_MODELS],
}
OUTERMOST = ["bench", "cli"]  # cvit/__init__.py does not import these, they may use it as any user does
# Files of more than 400 lines, each with the reason. A file that has become shorter leaves the list.
LONG = {
    "cvit/engine/kernels.pxd": "csrc's interface: one struct and its constructor after the other",
    "cvit/model/config.py": "a third of it is the docstring of its fields",
    "cvit/model/vit.py": "half of it is what its docstrings promise",
    "tests/reference.py": "the whole model, forward and backward, is read together",
    "tests/test_bench.py": "one section of `cvit bench` after the other",
    "tests/test_errors.py": "one table of wrong arguments and their errors",
    "tests/test_ops.py": "one op after the other",
    "tests/test_optim.py": "one optimizer after the other",
    "tests/test_threads.py": "one promise about threads after the other",
}


def module_of(path: Path) -> str:
    """The dotted name of a file under `cvit`; a .pyx, its .pxd and its .pyi are one module."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = sorted(path for kind in ("py", "pyx", "pxd", "pyi") for path in (ROOT / "cvit").rglob(f"*.{kind}"))
MODULES = {module_of(path) for path in FILES}


class _TypesLeftOut(ast.NodeTransformer):
    """Takes `if TYPE_CHECKING:` out of a module: what stands there is not imported when it runs."""

    def visit_If(self, node):
        return None if isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING" else node


def statements(path: Path):
    """Every import of a file as (module as it is written, names imported from it or None)."""
    text = path.read_text(encoding="utf-8")
    if path.suffix in (".py", ".pyi"):
        for node in ast.walk(_TypesLeftOut().visit(ast.parse(text))):
            if isinstance(node, ast.Import):
                yield from ((alias.name, None) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                yield "." * node.level + (node.module or ""), [alias.name for alias in node.names]
        return
    text = re.sub(r'""".*?"""|#[^\n]*', "", text, flags=re.DOTALL)
    for module, names in re.findall(r"^\s*from +([\w.]+) +c?import +(\([^)]*\)|[^\n]+)", text, re.MULTILINE):
        yield module, [name.split()[0] for name in re.split(r"[,()]", names) if name.strip()]
    for modules in re.findall(r"^\s*c?import +([^\n]+)", text, re.MULTILINE):
        yield from ((name.split()[0], None) for name in modules.split(","))


def imports(path: Path) -> set[str]:
    """The modules of cvit that a file imports."""
    package = module_of(path) if path.stem == "__init__" else module_of(path).rpartition(".")[0]
    found = set()
    for written, names in statements(path):
        dots = len(written) - len(written.lstrip("."))
        parents = package.split(".")
        above = parents[: len(parents) - dots + 1] if dots else []
        module = ".".join([*above, *filter(None, [written.lstrip(".")])])
        if module.split(".")[0] != "cvit":
            continue
        found |= {f"{module}.{name}" if f"{module}.{name}" in MODULES else module for name in names or [""]}
    return found - {module_of(path)}


def layer_of(module: str) -> str:
    """The package below cvit, "" for cvit itself."""
    return module.partition(".")[2].partition(".")[0]


def test_the_reader_reads_every_kind_of_import(monkeypatch, tmp_path):
    """Else the tests below would pass for want of finding anything."""
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    (tmp_path / "cvit/engine").mkdir(parents=True)
    python = tmp_path / "cvit/engine/a.py"
    python.write_text(
        '"""from ..docstring import x"""\nimport numpy, cvit.cli\nfrom .. import model\n'
        "def f():\n    from ..train.loop import (\n        fit,\n    )\n"
        "from . import team, plan as p\nfrom .team import run\n"
    )
    cython = python.with_suffix(".pyx")
    cython.write_text(
        '"""\nfrom ..docstring import x\n"""\nimport numpy as np\nfrom libc.math cimport sqrt\ncimport cvit.cli\n'
        "from .. cimport model\n    from ..train.loop cimport (\n    fit, other,  # from ..comment import y\n)\n"
        'cdef extern from "team.h" nogil:\n    pass\nfrom . cimport team, plan as p\nfrom .team import run\n'
    )
    for path in (python, cython):
        assert imports(path) == {"cvit.cli", "cvit.model", "cvit.train.loop", "cvit.engine.team", "cvit.engine.plan"}
    assert imports(ROOT / "cvit/engine/a.py") == imports(cython)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_imports_go_down(path):
    layer = layer_of(module_of(path))
    if path.parent == ROOT / "cvit" and layer not in BELOW:  # __init__.py, which hands names on, and __main__.py
        return
    for module in imports(path):
        if module == "cvit":
            assert layer in OUTERMOST, "import a name from its module: cvit/__init__.py imports this one"
            continue
        assert layer_of(module) in [layer, *BELOW[layer]], f"{layer} lies below {module}, or beside it"


def test_every_package_has_its_place():
    assert {layer_of(module) for module in MODULES} - {"", "__main__"} <= set(BELOW)


def test_no_module_imports_itself_by_a_detour():
    graph = {module: set() for module in MODULES}
    for path in FILES:
        graph[module_of(path)] |= imports(path)
    while graph:  # take away what imports nothing that is left, again and again: a cycle stays
        leaves = {module for module, below in graph.items() if not below & set(graph)}
        assert leaves, f"a cycle in {sorted(graph)}"
        for module in leaves:
            del graph[module]


CSRC = sorted(path for kind in ("c", "h", "inc") for path in (ROOT / "csrc").rglob(f"*.{kind}"))


@pytest.mark.parametrize("path", CSRC, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_kernels_know_no_model(path):
    """Kernels know rows, columns and heads' queries and keys; what they stand for in a model is the engine's affair."""
    code = re.sub(r"/\*.*?\*/|//[^\n]*", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert not re.findall(r"\w*(?:image|layer(?!norm)|model|patch(?!_)|pixel|transformer)\w*", code, re.IGNORECASE)


SOURCES = sorted(
    path
    for folder in ("cvit", "csrc", "tests", "bench")
    for path in (ROOT / folder).rglob("*")
    if path.suffix in {".py", ".pyi", ".pyx", ".pxd", ".c", ".h", ".inc"}
)


def test_lines_have_120_columns_at_most():
    wide = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in [*SOURCES, ROOT / "setup.py"]
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if len(line) > 120
    ]
    assert not wide


def test_files_have_400_lines_at_most():
    lengths = {
        path.relative_to(ROOT).as_posix(): len(path.read_text(encoding="utf-8").splitlines()) for path in SOURCES
    }
    long = {name: length for name, length in lengths.items() if length > 400}
    assert set(long) == set(LONG), "split what is new here, and take what is short now from LONG"
