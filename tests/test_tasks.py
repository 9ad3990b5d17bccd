"""docs/tasks.md keeps its word: the lines that its table gives, and README's copy of it, are those of the scripts."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGE, README = ((ROOT / name).read_text(encoding="utf-8") for name in ("docs/tasks.md", "README.md"))
HEADER = "| lines of code |"


def cells(row: str) -> list[str]:
    """The texts between the bars of a table's row."""
    return [cell.strip() for cell in row.strip().strip("|").split("|")]


def table(page: str) -> list[list[str]]:
    """The rows of the table of lines, its header first, without the rule below it."""
    rows = page[page.index(HEADER) :].split("\n\n")[0].splitlines()
    return [cells(row) for row in [rows[0], *rows[2:]]]


def scripts() -> dict[str, dict[str, str]]:
    """By task and library: the block of code with its fences, or the text that begins with a dash."""
    tasks = {}
    for section in re.split(r"^## (?=\d+\. )", PAGE, flags=re.MULTILINE)[1:]:
        title, *parts = re.split(r"^### ", section, flags=re.MULTILINE)
        tasks[title.splitlines()[0]] = {
            name: text.strip() for name, text in (part.split("\n", maxsplit=1) for part in parts)
        }
    return tasks


def code(text: str) -> str | None:
    """The one block of a section, None where a dash says that there is none."""
    blocks = re.findall(r"^```(?:python|sh)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    assert len(blocks) == (not text.startswith("— ")), text
    return blocks[0] if blocks else None


def lines(text: str) -> str:
    """What the table says of a section: the lines that are neither blank nor a comment, or a dash."""
    found = code(text)
    if found is None:
        return "—"
    return str(sum(bool(line.strip()) and not line.strip().startswith("#") for line in found.splitlines()))


def test_the_table_counts_the_scripts():
    (_, *libraries), *rows = table(PAGE)
    counts = {name.lower(): [lines(texts[library]) for library in libraries] for name, texts in scripts().items()}
    *tasks, (size, *_) = rows
    assert {name.lower(): values for name, *values in tasks} == counts
    assert size == "installed megabytes"


def test_readme_gives_the_same_table():
    assert table(README) == table(PAGE)


def test_the_page_has_the_table_and_every_library_in_every_task():
    libraries = table(PAGE)[0][1:]
    assert len(libraries) == 6 and len(scripts()) == 5
    assert all(list(texts) == libraries for texts in scripts().values())


def test_the_scripts_are_python_of_120_columns():
    blocks = re.findall(r"^```(\w+)\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    for language, text in blocks:
        if language == "python":
            ast.parse(text)
        assert max(map(len, text.splitlines())) <= 120
