"""`treadle bench`: loads for people and for machines, and its errors."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from treadle.cli.commands import bench
from treadle.core.errors import Overloaded

from .conftest import Treadle

AsJson = Callable[..., Any]
SHORT = ("--seconds", "0.2")


@pytest.fixture(scope="module")
def deployed(request: pytest.FixtureRequest, package: Path) -> str:
    """A deployment of a model that takes tensors."""
    up = request.getfixturevalue("up")
    from click.testing import CliRunner

    from treadle.cli.main import main

    for words in (("model", "push", "benched", package), ("deploy", "benched", "--traffic", "benched/1=100")):
        done = CliRunner().invoke(main, [*map(str, words), "--home", str(up.home)])
        assert done.exit_code == 0, done.output
    return "benched"


@pytest.mark.slow
def test_without_rows_it_sends_the_sample_of_the_model(as_json: AsJson, deployed: str) -> None:
    found = as_json("bench", deployed, *SHORT)
    assert found["deployment"] == deployed
    assert [load["in_flight"] for load in found["loads"]] == [1, 16, 64]
    for load in found["loads"]:
        assert load["requests_per_second"] > 0
        assert 0 < load["p50_ms"] <= load["p99_ms"] <= load["p999_ms"]
        assert load["errors"] == {}


@pytest.mark.slow
def test_rows_are_given_as_to_predict(as_json: AsJson, on_mesh: Treadle, deployed: str, tmp_path: Path) -> None:
    row = ("-t", "features:FP32=[5, 0, 0]")
    assert len(as_json("bench", deployed, *row, "--in-flight", 2, *SHORT)["loads"]) == 1
    path = tmp_path / "rows.json"
    path.write_text(json.dumps({"tensors": {"features:FP32": [[1.0, 2.0, 3.0]] * 3}}))
    shown = on_mesh("bench", deployed, "--rows", path, "--in-flight", 2, *SHORT).stdout
    assert "req/s" in shown
    assert "none" in shown


@pytest.mark.slow
def test_an_invalid_request_fails_before_any_measurement(on_mesh: Treadle, deployed: str) -> None:
    done = on_mesh("bench", deployed, "-t", "features:FP32=[1, 2]", "--seconds", "600")
    assert done.exit_code == 1
    assert "features" in done.output
    assert on_mesh("bench", "nobody").exit_code == 1


async def test_errors_are_counted_by_code_and_not_as_throughput() -> None:
    async def busy() -> None:
        raise Overloaded("full")

    load = await bench._loaded(busy, 2, 0.01)
    found = load.document()
    assert found["errors"].keys() == {"RESOURCE_EXHAUSTED"}
    assert found["requests_per_second"] == 0
    assert found["p50_ms"] is None
    assert bench._row(found)[-1].endswith("RESOURCE_EXHAUSTED")
