"""A service as a process of its own: what it is told before it serves."""

import pytest

from treadle.observability.telemetry import Telemetry
from treadle.rpc import serving
from treadle.rpc.errors import FailedPrecondition

from .conftest import Member, NoSettings, echo, opener


@pytest.mark.parametrize("port", ["99999", "-1", "x", ""])
async def test_a_metrics_port_that_is_none_is_named(port, tmp_path, monkeypatch):
    monkeypatch.setattr(serving, "setup", lambda *_, **__: Telemetry.off())
    environ = {"TREADLE_METRICS_LISTEN": f"127.0.0.1:{port}", "TREADLE_HOME": str(tmp_path)}
    with pytest.raises(FailedPrecondition, match=f"TREADLE_METRICS_LISTEN=127.0.0.1:{port}: .*choose another"):
        await serving.serve("member", opener(Member(echo)), NoSettings, environ)
