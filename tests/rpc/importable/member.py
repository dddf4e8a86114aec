"""A small mesh member with all four kinds of RPC. What it answers is the test's to say."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from treadle.core.errors import TreadleError
from treadle.observability.telemetry.telemetry import Telemetry
from treadle.rpc import context
from treadle.rpc.app.runtime import Runtime
from treadle.rpc.server.http import TelemetryMiddleware, http_status
from treadle.v1 import (
    features_pb2,
    features_pb2_grpc,
    prediction_pb2,
    prediction_pb2_grpc,
    registry_pb2,
    registry_pb2_grpc,
)

Answer = Callable[[str], Awaitable[str]]


@dataclass
class Member:
    """What the servicers do: `answer` maps a request's name to the answer's, and may raise or wait."""

    answer: Answer
    calls: list[context.RequestContext] = field(default_factory=list)
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when a stream's handler has come to its end, however it ended."""
    address: str = ""
    http_address: str = ""
    """Of its HTTP port, where the host gives it one of its own."""
    sample: Callable[[str, dict[str, str]], Awaitable[float | None]] | None = None
    """A metric of the member's process, by name and labels."""
    spans: Callable[[], Awaitable[list[tuple[str, str, str]]]] | None = None
    """Finished spans of the member's process: name, trace id, parent's span id."""

    async def __call__(self, name: str) -> str:
        self.calls.append(context.current())
        return await self.answer(name)


class Predictions(prediction_pb2_grpc.PredictionServiceServicer):
    def __init__(self, member: Member) -> None:
        self._member = member

    async def Predict(self, request: prediction_pb2.PredictRequest, context: Any) -> prediction_pb2.PredictResponse:
        if request.request_id == "metadata":
            received = dict(context.invocation_metadata())
            await context.send_initial_metadata((("first", received["asked"]), ("first-bin", received["asked-bin"])))
            context.set_trailing_metadata((("last", received["asked"]), ("last-bin", received["asked-bin"])))
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


def http_app(member: Member, telemetry: Telemetry) -> TelemetryMiddleware:
    """Answers with what the member says to the path."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await respond(200, await member(scope["path"]))(scope, receive, send)

    def respond(status: int, text: str) -> Any:
        async def response(scope: Any, receive: Any, send: Any) -> None:
            await send({"type": "http.response.start", "status": status, "headers": []})
            await send({"type": "http.response.body", "body": text.encode()})

        return response

    def error_response(path: str, error: TreadleError) -> Any:
        return respond(http_status(error), error.message)

    return TelemetryMiddleware(app, telemetry, route_template=lambda _: "/{path}", error_response=error_response)


def finished_spans(telemetry: Telemetry) -> list[tuple[str, str, str]]:
    """Name, trace id and parent's span id of each span."""
    return [
        (span.name, f"{span.context.trace_id:032x}", f"{span.parent.span_id:016x}" if span.parent else "")
        for span in telemetry.spans
        if span.context is not None
    ]


def opener(member: Member, *, http: bool = False) -> Any:
    """The `open_service` of a member; `http`: whether it answers HTTP as well."""

    @asynccontextmanager
    async def open_service(settings: object, runtime: Runtime) -> AsyncIterator[None]:
        prediction_pb2_grpc.add_PredictionServiceServicer_to_server(Predictions(member), runtime.server)
        features_pb2_grpc.add_FeatureServiceServicer_to_server(Features(member), runtime.server)  # type: ignore[abstract]  # what it lacks is never called
        registry_pb2_grpc.add_RegistryServiceServicer_to_server(Registry(member), runtime.server)  # type: ignore[abstract]  # nor here
        async with AsyncExitStack() as stack:
            if http:
                serving = runtime.http("127.0.0.1:0", http_app(member, runtime.telemetry))
                member.http_address = await stack.enter_async_context(serving)
            yield

    return open_service
