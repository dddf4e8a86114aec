"""A service as a process of its own: what it is told before it serves."""

import asyncio
import socket
from pathlib import Path

import pytest

from treadle.core.errors import FailedPrecondition, InvalidInput
from treadle.rpc.app.runtime import ServiceSpec
from treadle.rpc.app.serving import serve

from ...conftest import NoSettings
from ..conftest import Member, echo, opener


async def serve_with(home: Path, **variables: str) -> None:
    """Serves with these variables TREADLE_…"""
    environ = {"TREADLE_HOME": str(home)} | {f"TREADLE_{name.upper()}": text for name, text in variables.items()}
    await serve([ServiceSpec("member", opener(Member(echo)), NoSettings)], environ, stopping=asyncio.Event())


@pytest.mark.parametrize("port", ["99999", "-1", "x", ""])
async def test_a_metrics_port_that_is_none_is_named(port: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=f"TREADLE_METRICS_LISTEN must be host:port.*not '127.0.0.1:{port}'"):
        await serve_with(tmp_path, metrics_listen=f"127.0.0.1:{port}")


async def test_a_metrics_port_that_is_taken_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(FailedPrecondition, match=f"TREADLE_METRICS_LISTEN={address}: .*choose another"):
            await serve_with(tmp_path, metrics_listen=address)


async def test_every_wrong_setting_of_a_process_is_named_at_once(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput) as caught:
        await serve_with(tmp_path, trace_ratio="2", log_level="loud", otlp_endpoint="collector:4317", listen="7700")
    names = ("TRACE_RATIO", "LOG_LEVEL", "OTLP_ENDPOINT", "LISTEN")
    assert {each.field for each in caught.value.violations} == {f"TREADLE_{name}" for name in names}
