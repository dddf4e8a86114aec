"""A whole mesh, started as people start it, and commands run against it."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from treadle.cli.main import main

from ..conftest import BasePort

Treadle = Callable[..., Result]


@dataclass(frozen=True)
class Up:
    """A running `treadle up --json`."""

    process: "subprocess.Popen[str]"
    home: Path
    base_port: int
    ready: dict[str, Any]

    def next_event(self) -> dict[str, Any]:
        """The next line that it writes."""
        assert self.process.stdout is not None
        event: dict[str, Any] = json.loads(self.process.stdout.readline())
        return event


def start_up(home: Path, base_port: int) -> Up:
    """Starts a mesh and waits until it says that it is ready."""
    command = [sys.executable, "-m", "treadle.cli.main", "up", "--json", "--home", str(home)]
    process = subprocess.Popen(
        [*command, "--base-port", str(base_port)], stdout=subprocess.PIPE, text=True, env=clean_environment()
    )
    up = Up(process, home, base_port, {})
    event = up.next_event()
    assert event["event"] == "ready", event
    return Up(process, home, base_port, event)


def clean_environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("TREADLE_")}


@pytest.fixture(scope="session")
def up(tmp_path_factory: pytest.TempPathFactory, base_port: BasePort) -> Iterator[Up]:
    """One mesh for all tests that leave it as they found it."""
    running = start_up(tmp_path_factory.mktemp("mesh"), base_port())
    yield running
    running.process.terminate()
    running.process.communicate(timeout=60)


@pytest.fixture
def start_mesh(base_port: BasePort) -> Callable[[Path], Up]:
    """Starts a mesh of a test's own."""
    return lambda home: start_up(home, base_port())


@pytest.fixture
def treadle() -> Treadle:
    """Runs a command in this process."""
    runner = CliRunner()

    def run(*arguments: object) -> Result:
        return runner.invoke(main, [str(each) for each in arguments], prog_name="treadle")

    return run


@pytest.fixture
def on_mesh(up: Up, treadle: Treadle) -> Treadle:
    """Runs a command on the mesh."""
    return lambda *arguments: treadle(*arguments, "--home", up.home)


@pytest.fixture
def as_json(on_mesh: Treadle) -> Callable[..., Any]:
    """Runs a command on the mesh with --json; what it wrote to stdout, decoded."""

    def run(*arguments: object) -> Any:
        done = on_mesh(*arguments, "--json")
        assert done.exit_code == 0, done.output
        return json.loads(done.stdout)

    return run
