"""How commands fail: one line that says what, where and what to do; the right exit status; JSON for machines."""

import json
import sys
from pathlib import Path

import pytest

from treadle.cli.command import Command
from treadle.cli.main import main

from .conftest import Treadle

NOWHERE = "127.0.0.1:1"
ASKING = [
    ("status",),
    ("history",),
    ("model", "list"),
    ("model", "show", "delay/1"),
    ("model", "card", "delay/1"),
    ("model", "alias", "delay", "champion", "1"),
    ("model", "push", "delay", "."),
    ("deploy", "flights", "--traffic", "delay/1=100"),
    ("promote", "flights", "delay/1"),
    ("rollback", "flights"),
    ("predict", "flights", "-e", "tail_number=N1"),
    ("features", "get", "flights", "-e", "tail_number=N1"),
    ("features", "freshness"),
    ("features", "materialize"),
    ("evaluate", "delay/1", "data.parquet", "--label", "late"),
    ("trace",),
]


@pytest.mark.parametrize("arguments", ASKING, ids=" ".join)
def test_no_mesh_says_how_to_start_one(treadle: Treadle, arguments: tuple[str, ...]) -> None:
    done = treadle(*arguments, "--address", NOWHERE)
    assert done.exit_code == 1
    assert done.stdout == ""
    assert "no mesh answers at 127.0.0.1:" in done.stderr
    assert "treadle up" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("arguments", ASKING, ids=" ".join)
def test_no_mesh_is_reported_as_json(treadle: Treadle, arguments: tuple[str, ...]) -> None:
    done = treadle(*arguments, "--address", NOWHERE, "--json")
    assert done.exit_code == 1
    error = json.loads(done.stdout)["error"]
    assert error["code"] == "UNAVAILABLE"
    assert "treadle up" in error["hint"]


@pytest.mark.parametrize("do", [("stop", "features"), ("start", "features"), ("down",)], ids=" ".join)
def test_no_supervisor(treadle: Treadle, tmp_path: Path, do: tuple[str, ...]) -> None:
    done = treadle(*do, "--home", tmp_path, "--json")
    assert done.exit_code == 1
    assert json.loads(done.stdout)["error"]["code"] == "UNAVAILABLE"
    assert f"no mesh runs in {tmp_path}" in done.stderr


def test_debug_shows_where(treadle: Treadle) -> None:
    assert "Traceback" in treadle("history", "--address", NOWHERE, "--debug").stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("predict", "flights"), "say for what"),
        (("predict", "flights", "-e", "nonsense"), "NAME=VALUE"),
        (("predict", "flights", "-e", "a=1", "--rows", "-"), "in place of"),
        (("predict", "flights", "-e", "a=1", "-t", "x=1"), "without entities"),
        (("deploy", "flights"), "--traffic"),
        (("features", "get", "flights"), "-e NAME=VALUE"),
        (("evaluate", "delay/1", "data.parquet"), "--label"),
        (("train", "a:b", "--data", "x", "--model", "m", "--no-push"), "--folder"),
        (("model", "alias", "delay", "champion", "x"), "not a valid integer"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_wrong_usage_exits_with_two_and_a_hint(
    treadle: Treadle, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], says: str
) -> None:
    # Usage is judged before the mesh is asked, except where the rows are read.
    async def listening(_address: str) -> None:
        return

    monkeypatch.setattr("treadle.cli.command.require_listening", listening)
    done = treadle(*arguments)
    assert done.exit_code == 2, done.output
    assert says in done.stderr


def test_unknown_service(treadle: Treadle) -> None:
    done = treadle("serve", "nonsense", "--json")
    assert done.exit_code == 1
    assert json.loads(done.stdout)["error"]["hint"].startswith("one of gateway, features")


def test_an_unexpected_error_is_reported_as_a_fault_of_the_command(
    treadle: Treadle, monkeypatch: pytest.MonkeyPatch
) -> None:
    import treadle.cli.commands.history as module

    async def fails(_session: object, **_given: object) -> None:
        raise ZeroDivisionError("division by zero")

    assert isinstance(main.get_command(None, "history"), Command)  # type: ignore[arg-type]  # it needs no context
    monkeypatch.setattr(module.history, "callback", fails)
    done = treadle("history")
    assert done.exit_code == 1
    assert "ZeroDivisionError: division by zero" in done.stderr
    assert "--debug" in done.stderr


def test_demo_outside_of_the_repository_says_where_it_is(
    treadle: Treadle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = treadle("demo", "--exit")
    assert done.exit_code == 1
    assert "make demo" in done.stderr


DEMO = """
from pathlib import Path

async def main(exit_after):
    Path("told").write_text(str(exit_after))
    return STATUS
"""


@pytest.mark.parametrize(("returns", "status"), [("0", 0), ("3", 3), ("None", 0)])
def test_demo_runs_the_example_and_ends_with_its_status(
    treadle: Treadle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, returns: str, status: int
) -> None:
    folder = tmp_path / "examples" / "flights"
    folder.mkdir(parents=True)
    (folder / "demo.py").write_text(DEMO.replace("STATUS", returns))
    inside = tmp_path / "docs"
    inside.mkdir()
    monkeypatch.chdir(inside)
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert treadle("demo", "--exit").exit_code == status
    assert (inside / "told").read_text() == "True"
