"""`treadle up` as people run it."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from treadle.cli.commands.up import SignalHandlers
from treadle.mesh.meshfile import MeshFile

pytestmark = pytest.mark.slow


@pytest.fixture
def own(tmp_path: Path, start_mesh: Any) -> Any:
    """A mesh that a test may end."""
    up = start_mesh(tmp_path / "home")
    yield up
    up.process.kill()
    up.process.communicate(timeout=60)


def events_to_end(up: Any) -> list[dict[str, Any]]:
    rest, _ = up.process.communicate(timeout=60)
    return [json.loads(line) for line in rest.splitlines()]


def gone(pids: list[int]) -> bool:
    return not any(Path(f"/proc/{pid}").exists() for pid in pids)


async def test_the_first_signal_requests_shutdown_and_the_second_kills() -> None:
    kills: list[str] = []
    signals = SignalHandlers(lambda: kills.append("all"))
    os.kill(os.getpid(), signal.SIGINT)
    await signals.first
    assert kills == []
    os.kill(os.getpid(), signal.SIGINT)
    loop = asyncio.get_running_loop()
    while not kills:
        await asyncio.sleep(0)  # the loop's own signal pipe delivers it
    loop.remove_signal_handler(signal.SIGINT)
    loop.remove_signal_handler(signal.SIGTERM)


def test_up_prints_the_addresses_of_the_mesh(up: Any) -> None:
    ready = up.ready
    assert ready["gateway"] == f"127.0.0.1:{up.base_port}"
    assert ready["rest"] == f"http://127.0.0.1:{up.base_port + 10}"
    assert {each["state"] for each in ready["services"].values()} == {"ready"}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_drain_and_end_well(own: Any, number: signal.Signals) -> None:
    pids = [each["pid"] for each in own.ready["services"].values()]
    own.process.send_signal(number)
    assert [each["event"] for each in events_to_end(own)] == ["draining", "ended"]
    assert own.process.returncode == 0
    assert gone(pids)
    assert MeshFile.read(own.home) is None


def test_stop_start_down_from_another_terminal(own: Any, treadle: Any) -> None:
    home = ("--home", own.home, "--json")
    assert json.loads(treadle("stop", "features", *home).stdout)["services"]["features"]["state"] == "stopped"
    down = treadle("status", *home)
    assert down.exit_code == 1
    assert {each["service"] for each in json.loads(down.stdout)["services"] if each["health"] != "SERVING"} == {
        "features"
    }
    assert json.loads(treadle("start", "features", *home).stdout)["services"]["features"]["state"] == "ready"
    assert treadle("status", *home).exit_code == 0
    assert json.loads(treadle("stop", "nonsense", *home).stdout)["error"]["code"] == "NOT_FOUND"
    assert treadle("down", "--home", own.home).exit_code == 0
    assert events_to_end(own)[-1]["event"] == "ended"
    assert own.process.returncode == 0


def test_restarts_are_reported(own: Any) -> None:
    os.kill(own.ready["services"]["evaluation"]["pid"], signal.SIGKILL)
    died, back = own.next_event(), own.next_event()
    assert (died["service"], back["service"]) == ("evaluation", "evaluation")
    assert "SIGKILL" in died["text"]
    assert back["text"] == "is back"


def test_a_second_mesh_says_which_ports_are_taken(up: Any, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "treadle.cli.main", "up", "--json", "--home", str(tmp_path)]
    done = subprocess.run([*command, "--base-port", str(up.base_port)], capture_output=True, text=True, check=False)
    error = json.loads(done.stdout)["error"]
    assert done.returncode == 1
    assert f"127.0.0.1:{up.base_port} (gateway, gRPC)" in error["message"]
    assert "--base-port" in error["hint"]
    same_home = subprocess.run([*command[:-1], str(up.home)], capture_output=True, text=True, check=False)
    assert "a mesh runs in" in same_home.stderr
