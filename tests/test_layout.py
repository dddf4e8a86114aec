"""The source roots: one namespace, nothing generic beside it, folders and names that a reader can keep apart."""

import ast
import tomllib
from collections import defaultdict
from pathlib import Path

import pytest

HOUSE = Path(__file__).parent.parent
ROOTS = ("gateway", "observability", "plugins", "protos", "services")
MODULES_IN_A_FOLDER = 14
LARGER_FOLDERS = {
    "gateway/treadle/cli/commands": "one module a command",
}


def _entries(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if path.name != "__pycache__"}


@pytest.mark.parametrize("root", ROOTS)
def test_a_root_holds_the_namespace_alone(root: str) -> None:
    # A folder plugins/torch, say, would make `import torch` succeed with torch absent.
    allowed = {"treadle", "generate.py"} if root == "protos" else {"treadle"}
    assert _entries(HOUSE / root) <= allowed


@pytest.mark.parametrize("root", ROOTS)
def test_no_root_claims_the_namespace(root: str) -> None:
    # One treadle/__init__.py hides all the other roots, and mypy still says Success.
    assert not [path.name for path in (HOUSE / root / "treadle").iterdir() if path.suffix in {".py", ".pyi"}]


@pytest.mark.parametrize("root", ROOTS)
def test_every_package_is_typed(root: str) -> None:
    for package in (path for path in (HOUSE / root / "treadle").iterdir() if path.name != "__pycache__"):
        assert (package / "py.typed").exists(), f"{package} lacks py.typed"
        assert (package / "__init__.py").exists() or package.name == "v1", f"{package} lacks __init__.py"


def test_no_package_lies_in_two_roots() -> None:
    packages = [name for root in ROOTS for name in _entries(HOUSE / root / "treadle")]
    assert len(packages) == len(set(packages))


def test_packaging_knows_every_root() -> None:
    build = tomllib.loads((HOUSE / "pyproject.toml").read_text())["tool"]["hatch"]["build"]
    assert set(build["dev-mode-dirs"]) == set(ROOTS)
    assert set(build["targets"]["wheel"]["packages"]) == {f"{root}/treadle" for root in ROOTS}


def _modules() -> list[Path]:
    """Every module of the product: no stub, and no template of a plugin."""
    found = (path for root in ROOTS for path in (HOUSE / root / "treadle").rglob("*.py"))
    return [path for path in found if "_pb2" not in path.name and "template" not in path.parts]


def test_no_folder_holds_more_modules_than_a_reader_keeps_apart() -> None:
    counts: dict[str, int] = defaultdict(int)
    for path in _modules():
        counts[str(path.parent.relative_to(HOUSE))] += path.name != "__init__.py"
    assert {folder for folder, count in counts.items() if count > MODULES_IN_A_FOLDER} == LARGER_FOLDERS.keys()


def test_no_two_classes_share_a_name() -> None:
    homes = defaultdict(list)
    for path in _modules():
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef):
                homes[node.name].append(str(path.relative_to(HOUSE)))
    assert {name: paths for name, paths in homes.items() if len(paths) > 1} == {}
