"""`treadle plugins check` and `treadle plugins new`, without the command line."""

from pathlib import Path

import pytest

from treadle.core.errors import AlreadyExists, InvalidInput, NotFound
from treadle.plugins.authoring.check import check_plugin
from treadle.plugins.authoring.new import new_plugin
from treadle.plugins.manager import Plugins

FAULTY = """
import os
from treadle.plugins.backends.python import PythonBackend, _PythonModel
from treadle.plugins.metrics import Metric
from treadle.plugins.hookspecs import hookimpl

def average(inputs):
    rows = inputs["prediction"]
    return {"prediction": 0 * rows + rows.mean()}

class Faulty(PythonBackend):
    name = "faulty"

    def load(self, source):
        super().load(source)
        return _PythonModel(average)

class Silent(Faulty):
    name = "faulty.silent"

    def example(self):
        return None

class Score(Metric):
    name = "faulty.score"
    tasks = ("regression",)
    higher_is_better = True

    def score(self, labels, scores):
        return 0.0

@hookimpl
def treadle_model_backends(register):
    register(Faulty())
    register(Silent())

@hookimpl
def treadle_metrics(register):
    register(Score())
"""


def test_a_sound_plugin_passes_everything() -> None:
    results = check_plugin("python")
    assert len(results) > 15
    assert {(result.subject, result.outcome, result.message) for result in results} == {
        ("backend python", "passed", "")
    }
    assert "a row does not depend on its neighbours" in {result.test for result in results}


def test_a_faulty_plugin_is_told_what_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = tmp_path / "faulty_plugin-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: faulty-plugin\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[treadle]\nfaulty = faulty_plugin\n")
    (tmp_path / "faulty_plugin.py").write_text(FAULTY)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    results = check_plugin("faulty")
    failed = {result.test for result in results if result.outcome == "failed"}
    assert {"outputs match the original model", "a row does not depend on its neighbours"} <= failed
    assert all(result.message for result in results if result.outcome != "passed")
    skipped = {result.subject for result in results if result.outcome == "skipped"}
    assert skipped == {"backend faulty.silent", "metric faulty.score"}


def test_a_check_that_does_not_end_is_a_failure() -> None:
    (result,) = check_plugin("python", timeout_seconds=0.01)
    assert (result.outcome, result.message) == ("failed", "did not end within 0.01 s")


def test_plugins_that_are_not_there_or_blocked_cannot_be_checked() -> None:
    with pytest.raises(NotFound, match="no plugin 'typo' is installed"):
        check_plugin("typo")
    with pytest.raises(NotFound, match="blocked"):
        check_plugin("torch", Plugins.load(blocked=["torch"]))


def test_new_writes_a_project(tmp_path: Path) -> None:
    paths = new_plugin("nearest-neighbour", tmp_path / "project")
    names = {path.relative_to(tmp_path / "project").as_posix() for path in paths}
    assert names == {"pyproject.toml", "README.md", "treadle_nearest_neighbour.py", "tests/test_contract.py"}
    for path in paths:
        assert "@" not in path.read_text().replace("@hookimpl", "").replace("@dataclass", "").replace(
            "@classmethod", ""
        )
    assert 'nearest-neighbour = "treadle_nearest_neighbour"' in (tmp_path / "project" / "pyproject.toml").read_text()
    assert "class NearestNeighbourBackend" in (tmp_path / "project" / "treadle_nearest_neighbour.py").read_text()


@pytest.mark.parametrize("name", ["", "Upper", "under_score", "../up", "a--b", "-a", "1st", "a b", "a.b"])
def test_new_refuses_names_that_are_none(tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidInput, match="lower-case words joined by '-'"):
        new_plugin(name, tmp_path / "project")
    assert not (tmp_path / "project").exists()


def test_new_overwrites_nothing(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    for taken in (tmp_path, tmp_path / "mine.txt"):
        with pytest.raises(AlreadyExists):
            new_plugin("centroid", taken)
    assert new_plugin("centroid", tmp_path / "empty")
