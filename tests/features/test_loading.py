"""User modules are loaded afresh, under the name that serving imports, with clear errors."""

import sys
from pathlib import Path

import pytest

from treadle.core.errors import FailedPrecondition, InvalidInput
from treadle.features import load_definitions
from treadle.features.source import function_digest_in, import_function

from .conftest import Write


def test_functions_resolve_to_the_same_code(write_project: Write) -> None:
    path = write_project()
    found = load_definitions(path)
    assert [each.name for each in found.views] == ["weather", "delays"]
    (transform,) = found.services[0].named_transforms
    assert transform.function == f"{path.stem}:push_of_wind"
    call, digest = import_function(transform.function)
    assert call is transform.call
    assert digest == transform.source_digest


def test_source_paths_are_relative_to_the_file(write_project: Write) -> None:
    path = write_project()
    source = load_definitions(path).views[0].source
    assert source is not None
    assert source.path == str(path.parent / "weather.parquet")


def test_an_edited_file_is_reloaded(write_project: Write) -> None:
    path = write_project()
    first = load_definitions(path)
    write_project(path.read_text().replace("nan=1.0", "nan=2.0"), path)
    (before,), (after,) = (each.services[0].named_transforms for each in (first, load_definitions(path)))
    assert before.source_digest != after.source_digest
    write_project(path.read_text().replace("nan=2.0", "nan=3.0"), path)
    _, digest = import_function(after.function)
    assert digest not in {before.source_digest, after.source_digest}


def test_modules_in_packages(write_project: Write, tmp_path: Path) -> None:
    package = tmp_path / "project" / "features_of_test_package"
    package.mkdir()
    (package / "__init__.py").touch()
    text = write_project().read_text()
    found = load_definitions(write_project(text, package / "flights.py"))
    assert found.services[0].named_transforms[0].function == "features_of_test_package.flights:push_of_wind"


@pytest.mark.parametrize(
    ("text", "message", "is_loaded"),
    [
        ("x = 1", "defines no FeatureView", True),
        ("def broken(:", "SyntaxError", False),
        ("import not_there_at_all", "ModuleNotFoundError", False),
        ("raise RuntimeError('no')", "RuntimeError: no", False),
        ("from treadle.features import *\nv = FeatureView('v', [], None, [])", "at least one entity", False),
        (
            "from treadle.features import *\ns = FeatureService('s', [FeatureSet('gone')])",
            "unknown view 'gone'; there are none",
            True,
        ),
    ],
)
def test_unusable_files(write_project: Write, text: str, message: str, is_loaded: bool) -> None:
    path = write_project(text)
    with pytest.raises(InvalidInput, match=message):
        load_definitions(path)
    assert (path.stem in sys.modules) is is_loaded


def test_paths_that_are_not_modules(tmp_path: Path, write_project: Write) -> None:
    with pytest.raises(InvalidInput, match="not a Python file"):
        load_definitions(tmp_path / "gone.py")
    clash = write_project("x = 1", tmp_path / "project" / "json.py")
    with pytest.raises(InvalidInput, match="clashes with the module 'json'"):
        load_definitions(clash)


@pytest.mark.parametrize("function", ["not_there_at_all:f", "json:gone", "json:JSONDecoder", "math:sqrt"])
def test_functions_that_cannot_be_resolved(function: str) -> None:
    with pytest.raises((FailedPrecondition, InvalidInput)):
        import_function(function)


def test_the_digest_is_of_the_function_alone() -> None:
    text = "a = 1\n@mark\ndef f(x):\n    return x\n"
    assert function_digest_in(text, "f") == function_digest_in("\n\n" + text.replace("a = 1", "b = 2"), "f")
    assert function_digest_in(text, "f") != function_digest_in(text.replace("return x", "return -x"), "f")
    with pytest.raises(InvalidInput, match="not a plain function"):
        function_digest_in("f = 1", "f")
