"""A small mesh member with all four kinds of RPC, hosted for real, and a channel to it."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from treadle.observability.telemetry import Telemetry
from treadle.rpc import context
from treadle.rpc.channel import Channel
from treadle.rpc.service import Runtime
from treadle.rpc.serving import running
from treadle.v1 import (
    features_pb2,
    features_pb2_grpc,
    prediction_pb2,
    prediction_pb2_grpc,
    registry_pb2,
    registry_pb2_grpc,
)

from ..conftest import NoSettings

Answer = Callable[[str], Awaitable[str]]


@dataclass
class Member:
    """What the servicers do: `answer` maps a request's name to the answer's, and may raise or wait."""

    answer: Answer
    calls: list[context.Call] = field(default_factory=list)
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when a stream's handler has come to its end, however it ended."""

    async def __call__(self, name: str) -> str:
        self.calls.append(context.current())
        return await self.answer(name)


class Predictions(prediction_pb2_grpc.PredictionServiceServicer):
    def __init__(self, member: Member) -> None:
        self._member = member

    async def Predict(self, request: prediction_pb2.PredictRequest, context: Any) -> prediction_pb2.PredictResponse:
        return prediction_pb2.PredictResponse(request_id=await self._member(request.deployment))

    async def PredictStream(
        self, request_iterator: AsyncIterator[prediction_pb2.PredictRequest], context: Any
    ) -> AsyncIterator[prediction_pb2.PredictStreamResponse]:
        try:
            async for request in request_iterator:
                yield prediction_pb2.PredictStreamResponse(request_id=await self._member(request.deployment))
        finally:
            self._member.ended.set()


class Features(features_pb2_grpc.FeatureServiceServicer):
    def __init__(self, member: Member) -> None:
        self._member = member

    async def Push(
        self, request_iterator: AsyncIterator[features_pb2.PushRequest], context: Any
    ) -> features_pb2.PushResponse:
        names = [await self._member(request.view) async for request in request_iterator]
        return features_pb2.PushResponse(rows_written=len(names))


class Registry(registry_pb2_grpc.RegistryServiceServicer):
    """Answers in the style that writes to the context instead of yielding."""

    def __init__(self, member: Member) -> None:
        self._member = member

    async def WatchDeployments(self, request: registry_pb2.WatchDeploymentsRequest, context: Any) -> None:  # type: ignore[override]
        try:
            for number in range(3):
                cursor = await self._member(f"{request.cursor}{number}")
                await context.write(registry_pb2.DeploymentEvent(cursor=cursor))
        finally:
            self._member.ended.set()


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


def opener(member: Member) -> Any:
    """The `open_service` of a member."""

    @asynccontextmanager
    async def open_service(settings: NoSettings, runtime: Runtime) -> AsyncIterator[None]:
        prediction_pb2_grpc.add_PredictionServiceServicer_to_server(Predictions(member), runtime.server)
        features_pb2_grpc.add_FeatureServiceServicer_to_server(Features(member), runtime.server)
        registry_pb2_grpc.add_RegistryServiceServicer_to_server(Registry(member), runtime.server)
        yield

    return open_service


Mesh = Callable[..., Any]


@pytest.fixture
def telemetry() -> Telemetry:
    return Telemetry.recording()


@pytest.fixture
def mesh(tmp_path: Path, telemetry: Telemetry) -> Mesh:
    """`async with mesh(answer) as (stubs, member)`: options go to `running`."""

    @asynccontextmanager
    async def run(answer: Answer, **options: Any) -> AsyncIterator[tuple[Stubs, Member]]:
        member = Member(answer)
        async with (
            running(opener(member), NoSettings(), home=tmp_path, telemetry=telemetry, **options) as address,
            Channel(address, service="member", telemetry=telemetry, tls=options.get("tls")) as channel,
        ):
            yield Stubs(channel), member

    return run


async def echo(name: str) -> str:
    """Answers with what was asked."""
    return name
