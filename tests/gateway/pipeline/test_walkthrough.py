"""The page that walks one request through the pipeline names files, classes and functions that exist."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
GATEWAY = ROOT / "gateway" / "treadle" / "gateway"
PAGE = (ROOT / "docs" / "pipeline.md").read_text()
NAMED = re.findall(r"`((?:api|pipeline|ledger|policy|upstream)/[\w/]+\.py)(?::([\w.]+))?`", PAGE)


def definitions(path: Path) -> set[str]:
    """Functions and classes of a module, and methods as "Class.method"."""
    found = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            methods = (each for each in node.body if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef))
            found.update(f"{node.name}.{each.name}" for each in methods)
    return found


@pytest.mark.parametrize(("file", "name"), NAMED)
def test_what_the_page_names_exists(file: str, name: str) -> None:
    assert (GATEWAY / file).is_file()
    assert not name or name in definitions(GATEWAY / file)


def test_a_request_takes_at_most_ten_steps() -> None:
    steps = re.findall(r"^(\d+)\. \*\*", PAGE, re.MULTILINE)
    assert [int(step) for step in steps] == list(range(1, len(steps) + 1))
    assert 5 <= len(steps) <= 10


def test_every_stage_of_the_pipeline_is_on_the_page() -> None:
    source = (GATEWAY / "pipeline" / "pipeline.py").read_text()
    stages = source[source.index("compose(") :].partition("]")[0]
    named = set(re.findall(r"^ +(\w+)[,(]", stages, re.MULTILINE))
    assert len(named) >= 6
    assert named <= {name for _, name in NAMED}
