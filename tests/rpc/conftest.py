"""A small mesh member with all four kinds of RPC, hosted for real in each way there is, and a channel to it."""

import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from treadle.observability.telemetry.telemetry import Telemetry
from treadle.rpc.app.serving import running
from treadle.rpc.client.channel import Channel
from treadle.rpc.client.local import LocalChannel
from treadle.rpc.server.server import Server
from treadle.v1 import features_pb2_grpc, prediction_pb2, prediction_pb2_grpc, registry_pb2_grpc

from ..conftest import NoSettings, needs_envoy

sys.path.insert(0, str(Path(__file__).parent / "importable"))

from member import Answer, Member, finished_spans, opener

__all__ = ["Answer", "Member", "Stubs", "echo", "opener", "over_a_network", "spans_by_the_sdk"]


class Stubs:
    """Typed stubs over one channel."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self.predictions = prediction_pb2_grpc.PredictionServiceStub(channel)
        self.features = features_pb2_grpc.FeatureServiceStub(channel)
        self.registry = registry_pb2_grpc.RegistryServiceStub(channel)

    async def predict(self, name: str = "x", **options: Any) -> str:
        """One unary call."""
        return (await self.predictions.Predict(prediction_pb2.PredictRequest(deployment=name), **options)).request_id


Mesh = Callable[..., Any]
Counted = Callable[[str, str], Any]


@pytest.fixture
def telemetry() -> Telemetry:
    return Telemetry.recording()


ENVOY = pytest.param("envoy", marks=needs_envoy)


@pytest.fixture(params=["grpcio", ENVOY, "local"])
def host(request: pytest.FixtureRequest) -> str:
    """Each host in turn; "local" is none: the caller is in the member's process. See `over_a_network`."""
    return str(request.param)


over_a_network = pytest.mark.parametrize("host", ["grpcio", ENVOY], indirect=True)
"""For what only a network has: sizes, certificates, strangers."""
spans_by_the_sdk = pytest.mark.parametrize("host", ["grpcio", "local"], indirect=True)
"""For spans of the server that Python records. Envoy's are in test_envoy_tracing.py, and in the end-to-end tests."""


@pytest.fixture
def mesh(host: str, tmp_path: Path, telemetry: Telemetry) -> Mesh:
    """`async with mesh(answer) as (stubs, member)`: options go to the host."""

    @asynccontextmanager
    async def run(answer: Answer, **options: Any) -> AsyncIterator[tuple[Stubs, Member]]:
        tls = options.pop("tls", None)
        async with _hosted(host, answer, tmp_path, telemetry, options) as (made, member):
            channel = made or Channel(member.address, service="member", telemetry=telemetry, tls=tls)
            async with channel:
                yield Stubs(channel), member

    return run


@asynccontextmanager
async def _hosted(
    host: str, answer: Answer, folder: Path, telemetry: Telemetry, options: dict[str, Any]
) -> AsyncIterator[tuple[Channel | None, Member]]:
    """The member, and the channel to it unless a plain one will do."""
    if host == "envoy":
        from .remote import in_envoy

        async with in_envoy(answer, folder, **options) as member:
            yield None, member
        return
    member, servers = Member(answer), dict[str, Server]()

    async def sample(name: str, labels: dict[str, str]) -> float | None:
        return telemetry.meters.registry.get_sample_value(name, labels)

    async def spans() -> list[tuple[str, str, str]]:
        return finished_spans(telemetry)

    member.sample, member.spans = sample, spans
    opened = opener(member, http=options.pop("http", False))
    serving = running(opened, NoSettings(), home=folder, telemetry=telemetry, local=servers, **options)
    async with serving as member.address:
        yield LocalChannel(servers["test"], service="member", telemetry=telemetry) if host == "local" else None, member


async def echo(name: str) -> str:
    """Answers with what was asked."""
    return name
