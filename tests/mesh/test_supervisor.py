"""The supervisor with real services: restarts, the control socket, and shutdown."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from treadle.mesh.control import send_command
from treadle.mesh.errors import CommandError
from treadle.mesh.health import HealthStatus, check
from treadle.mesh.meshfile import MeshFile
from treadle.mesh.supervisor import Mesh

from ..conftest import BasePort

pytestmark = pytest.mark.slow
SOME = ("registry", "features")
Heard = list[tuple[str, str]]


@pytest.fixture
def heard() -> Heard:
    return []


@pytest.fixture
async def mesh(tmp_path: Path, heard: Heard, base_port: BasePort) -> AsyncIterator[Mesh]:
    notice: Callable[[str, str], None] = lambda service, text: heard.append((service, text))  # noqa: E731
    async with Mesh(tmp_path, base_port(), services=SOME, notice=notice) as mesh:
        yield mesh


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"


async def test_a_killed_service_is_restarted(mesh: Mesh, heard: Heard) -> None:
    before = mesh.processes["registry"]
    mesh.kill("registry")
    await mesh.ready("registry")
    assert mesh.processes["registry"] != before
    assert await check(mesh.address("registry")) is HealthStatus.SERVING
    assert [service for service, _ in heard] == ["registry", "registry"]
    assert "killed by SIGKILL" in heard[0][1]
    assert heard[1][1] == "is back"
    assert mesh.services["registry"]["restarts"] == 1


async def test_a_stopped_service_stays_stopped_until_it_is_started(mesh: Mesh, heard: Heard) -> None:
    await mesh.stop("features")
    assert "features" not in mesh.processes
    assert await check(mesh.address("features")) is HealthStatus.UNREACHABLE
    assert await check(mesh.address("registry")) is HealthStatus.SERVING
    await mesh.start("features")
    assert await check(mesh.address("features")) is HealthStatus.SERVING
    assert heard == []


async def test_other_processes_find_the_mesh_and_control_it(mesh: Mesh) -> None:
    found = MeshFile.read(mesh.plan.home)
    assert found is not None
    assert found.addresses["registry"] == mesh.address("registry")
    assert found.pids == mesh.processes
    stopped = await send_command(found.control, "stop", "features")
    assert stopped["services"]["features"]["state"] == "stopped"
    started = await send_command(found.control, "start", "features")
    assert started["services"]["features"]["state"] == "ready"
    with pytest.raises(CommandError, match="no service 'nonsense'"):
        await send_command(found.control, "stop", "nonsense")
    with pytest.raises(CommandError, match="can't 'dance'"):
        await send_command(found.control, "dance")
    await send_command(found.control, "down")
    assert mesh.down.is_set()


async def test_the_control_socket_is_accessible_to_its_user_only(mesh: Mesh) -> None:
    found = MeshFile.read(mesh.plan.home)
    assert found is not None
    assert Path(found.control).stat().st_mode & 0o077 == 0  # noqa: ASYNC240


async def test_logs_are_json_and_rotate(tmp_path: Path, base_port: BasePort) -> None:
    for _ in range(2):
        async with Mesh(tmp_path, base_port(), services=["registry"]) as mesh:
            log = mesh.log("registry")
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert lines[0]["event"] == "serving"
    assert (tmp_path / "logs" / "registry.1.jsonl").exists()


async def test_shutdown_leaves_no_process_and_no_file(tmp_path: Path, base_port: BasePort) -> None:
    async with Mesh(tmp_path, base_port(), services=SOME) as mesh:
        pids = list(mesh.processes.values())
    assert not any(alive(pid) for pid in pids)
    assert MeshFile.read(tmp_path) is None
    assert not (tmp_path / "mesh.sock").exists()


async def test_a_home_has_at_most_one_mesh(mesh: Mesh, tmp_path: Path) -> None:
    other = (
        "import asyncio, sys\nfrom pathlib import Path\nfrom treadle.mesh.supervisor import Mesh\n"
        "asyncio.run(Mesh(Path(sys.argv[1]), 39_000).__aenter__())"
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", other, str(tmp_path), stderr=asyncio.subprocess.PIPE
    )
    _, error = await process.communicate()
    assert process.returncode == 1
    assert "a mesh runs in" in error.decode()


async def test_a_service_that_cannot_start_fails_the_mesh_with_its_reason(tmp_path: Path, base_port: BasePort) -> None:
    environ = {**os.environ, "TREADLE_REGISTRY_NONSENSE": "1"}
    with pytest.raises(
        CommandError, match=r"(?s)registry did not start \(exit status 1\): .*TREADLE_REGISTRY_NONSENSE"
    ) as caught:
        async with Mesh(tmp_path, base_port(), services=SOME, environ=environ):
            pytest.fail("it can't be ready")
    assert "registry.jsonl" in caught.value.hint


async def test_a_long_home_still_has_a_socket(tmp_path: Path, base_port: BasePort) -> None:
    home = tmp_path / ("long" * 30)
    async with Mesh(home, base_port(), services=["registry"]):
        found = MeshFile.read(home)
        assert found is not None
        assert (await send_command(found.control, "status"))["services"]["registry"]["state"] == "ready"
    assert not Path(found.control).parent.exists()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_services_end_when_their_supervisor_ends_or_is_killed(
    tmp_path: Path, number: signal.Signals, base_port: BasePort
) -> None:
    program = (
        "import asyncio, json, sys\nfrom pathlib import Path\nfrom treadle.mesh.supervisor import Mesh\n"
        "async def main():\n"
        "    async with Mesh(Path(sys.argv[1]), int(sys.argv[2]), services=['registry']) as mesh:\n"
        "        print(json.dumps(mesh.processes), flush=True)\n"
        "        await asyncio.Event().wait()\n"
        "asyncio.run(main())"
    )
    arguments = [sys.executable, "-c", program, str(tmp_path), str(base_port())]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as supervisor:
        assert supervisor.stdout is not None
        pid = json.loads(supervisor.stdout.readline())["registry"]
        watched = os.pidfd_open(pid)
        supervisor.send_signal(number)
        if number is signal.SIGSTOP:  # asleep is not gone: its services go on
            assert alive(pid)
        supervisor.kill()
        supervisor.wait()
        import select

        assert select.select([watched], [], [], 30)[0], "the service outlived its supervisor"
        os.close(watched)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("TREADLE_TLS_CERT", "mesh.crt"),
        ("TREADLE_LISTEN", "127.0.0.1:9"),
        ("TREADLE_METRICS_LISTEN", "127.0.0.1:9"),
        ("TREADLE_GATEWAY_REST_LISTEN", "127.0.0.1:9"),
        ("TREADLE_PEER_FEATURES", "127.0.0.1:9"),
    ],
)
async def test_a_mesh_refuses_variables_that_it_would_override(tmp_path, name, value):
    with pytest.raises(CommandError, match=f"{name} is set"):
        async with Mesh(tmp_path, environ={name: value}):
            pass


def test_a_drain_time_that_is_no_number_is_refused(tmp_path):
    with pytest.raises(CommandError, match="TREADLE_DRAIN_SECONDS must be a number, not 'long'"):
        Mesh(tmp_path, environ={"TREADLE_DRAIN_SECONDS": "long"})
