"""The tables of tests/README.md name tests that exist."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
_ID = re.compile(r"`(tests/[\w/-]+\.py)::(\w+)`")
_ROW = re.compile(r"^\| (?!what )(.+?) \| (.+) \|$", re.MULTILINE)


def names_in(path: Path) -> set[str]:
    """Test functions and classes at the top of a file."""
    kinds = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
    return {node.name for node in ast.parse(path.read_text()).body if isinstance(node, kinds)}


def test_every_test_that_is_named_exists() -> None:
    named = _ID.findall((ROOT / "tests/README.md").read_text())
    files = {file: names_in(ROOT / file) for file in {file for file, _ in named}}
    assert [f"{file}::{name}" for file, name in named if name not in files[file]] == []
    assert len(named) > 80


def test_every_line_names_a_test() -> None:
    rows = _ROW.findall((ROOT / "tests/README.md").read_text())
    assert [what for what, tests in rows if not _ID.search(tests)] == []
    assert len(rows) > 40
