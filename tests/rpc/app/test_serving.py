"""A service as a process of its own: what it is told before it serves."""

import asyncio

import pytest

from treadle.core.errors import FailedPrecondition
from treadle.rpc.app.runtime import ServiceSpec
from treadle.rpc.app.serving import serve

from ...conftest import NoSettings
from ..conftest import Member, echo, opener


@pytest.mark.parametrize("port", ["99999", "-1", "x", ""])
async def test_a_metrics_port_that_is_none_is_named(port, tmp_path):
    environ = {"TREADLE_METRICS_LISTEN": f"127.0.0.1:{port}", "TREADLE_HOME": str(tmp_path)}
    with pytest.raises(FailedPrecondition, match=f"TREADLE_METRICS_LISTEN=127.0.0.1:{port}: .*choose another"):
        await serve([ServiceSpec("member", opener(Member(echo)), NoSettings)], environ, stopping=asyncio.Event())
