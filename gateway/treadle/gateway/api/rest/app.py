"""REST: a pure ASGI application over the same core as gRPC.

Treadle's own errors are `{"error": message, "code": "INVALID_ARGUMENT", "violations": […]}`, with the HTTP status of
the code. OIP's paths under `/v2` answer errors in its form, `{"error": message}`, with the same statuses.
"""

import time
import uuid
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from contextlib import suppress
from typing import Any

import grpc
from opentelemetry.trace import SpanKind, StatusCode
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from treadle.core.errors import Cancelled, DeadlineExceeded, Internal, InvalidInput, TreadleError
from treadle.gateway.api.annotation import annotate
from treadle.gateway.api.grpc.oip_servicer import OipServicer
from treadle.gateway.api.rest import json_codec, openapi
from treadle.gateway.api.rest import oip as rest_oip
from treadle.gateway.api.rest.reply import reply
from treadle.gateway.pipeline.pipeline import PredictionPipeline
from treadle.gateway.pipeline.routing import parse_version
from treadle.observability.telemetry.propagation import extract, trace_id_of
from treadle.observability.telemetry.telemetry import Telemetry
from treadle.rpc import tracing
from treadle.rpc.context import TENANT, RequestContext, current, request_scope

TIMEOUT_HEADER = "treadle-timeout-seconds"
_HTTP_STATUS = {
    grpc.StatusCode.INVALID_ARGUMENT: 400,
    grpc.StatusCode.OUT_OF_RANGE: 400,
    grpc.StatusCode.FAILED_PRECONDITION: 412,
    grpc.StatusCode.UNAUTHENTICATED: 401,
    grpc.StatusCode.PERMISSION_DENIED: 403,
    grpc.StatusCode.NOT_FOUND: 404,
    grpc.StatusCode.ALREADY_EXISTS: 409,
    grpc.StatusCode.ABORTED: 409,
    grpc.StatusCode.RESOURCE_EXHAUSTED: 429,
    grpc.StatusCode.CANCELLED: 499,
    grpc.StatusCode.UNIMPLEMENTED: 501,
    grpc.StatusCode.UNAVAILABLE: 503,
    grpc.StatusCode.DEADLINE_EXCEEDED: 504,
}
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class TooLarge(InvalidInput):
    """A body over the limit: HTTP 413."""


class Rest:
    """The endpoints."""

    def __init__(self, pipeline: PredictionPipeline, oip_servicer: OipServicer, max_body_bytes: int) -> None:
        self._pipeline = pipeline
        self._decoder = json_codec.RequestDecoder()
        self._oip = rest_oip.OipRest(oip_servicer)
        self._max_body_bytes = max_body_bytes

    def routes(self) -> list[Route]:
        """Every path, each of which `openapi.DOCUMENT` describes."""
        models, versioned = "/v2/models/{model}", "/v2/models/{model}/versions/{version}"
        return [
            Route("/v1/deployments/{name}:predict", self.predict, methods=["POST"]),  # first: the one most asked for
            Route("/healthz", self.healthz),
            Route("/openapi.json", self.document),
            Route("/docs", self.docs),
            Route("/", self.docs),
            Route("/v2", self._oip.server),
            Route("/v2/health/live", self._oip.live),
            Route("/v2/health/ready", self._oip.ready),
            *[Route(base, self._oip.metadata) for base in (models, versioned)],
            *[Route(f"{base}/ready", self._oip.model_ready) for base in (models, versioned)],
            *[Route(f"{base}/infer", self.infer, methods=["POST"]) for base in (models, versioned)],
        ]

    async def healthz(self, request: Request) -> Response:
        """Whether the process answers."""
        return reply({"status": "ok"})

    async def document(self, request: Request) -> Response:
        """The OpenAPI document."""
        return reply(openapi.DOCUMENT)

    async def docs(self, request: Request) -> Response:
        """The document as a page."""
        return HTMLResponse(openapi.page())

    async def predict(self, request: Request) -> Response:
        """A prediction by entity keys or tensors."""
        body = json_codec.parse(await self._body(request))
        deployment = self._pipeline.policies.deployment(request.path_params["name"])
        asked = self._decoder.decode(body, deployment, parse_version(current().metadata))
        prediction = await self._pipeline.predict(asked)
        annotate(deployment.name, prediction)
        return reply(json_codec.prediction_to_json(prediction, asked, current().trace_id))

    async def infer(self, request: Request) -> Response:
        """A prediction in the Open Inference Protocol."""
        return reply(await self._oip.infer(request, json_codec.parse(await self._body(request))))

    async def _body(self, request: Request) -> bytes:
        received = bytearray()
        async for chunk in request.stream():
            received += chunk
            if len(received) > self._max_body_bytes:
                raise TooLarge(f"the body is larger than {self._max_body_bytes} bytes; send fewer rows")
        return bytes(received)


def make_app(rest: Rest, telemetry: Telemetry) -> "Observed":
    """The application as uvicorn (or Envoy) hosts it."""

    async def unexpected(request: Request, error: Exception) -> Response:
        error_id = uuid.uuid4().hex[:12]
        telemetry.log.error("a REST call failed unexpectedly", error_id=error_id, exc_info=error)
        return _failed(request, Internal(f"internal error {error_id}: the server's log tells more under this id"))

    handlers: dict[Any, Any] = {
        404: _no_route,
        405: _no_route,
        TreadleError: _failed_as_said,
        ClientDisconnect: _gone,
        Exception: unexpected,
    }
    return Observed(Starlette(routes=rest.routes(), exception_handlers=handlers), telemetry)


class Observed:
    """Around every request: the span and the call's context."""

    def __init__(self, app: Starlette, telemetry: Telemetry) -> None:
        self._app = app
        self._telemetry = telemetry

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {key.decode("latin-1"): value.decode("latin-1") for key, value in scope["headers"]}
        path: str = scope["path"]
        name, caller, start_nanos = (
            f"{scope['method']} {openapi.template(path)}",
            extract(headers.items()),
            time.time_ns(),
        )
        span = self._telemetry.tracer.start_span(
            name,
            context=caller,
            kind=SpanKind.SERVER,
            attributes={"http.request.method": scope["method"], "url.path": path},
        )

        status = 499  # as nginx notes a caller that left before the answer
        request = RequestContext(trace_id=trace_id_of(span), metadata=headers)

        async def observed_send(message: MutableMapping[str, Any]) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                span.set_attribute("http.response.status_code", message["status"])
                if message["status"] >= 500:
                    span.set_status(StatusCode.ERROR)
            await send(message)

        try:
            with tracing.active(span):
                await self._answer(scope, receive, observed_send, request)
        finally:
            if span.is_recording():
                span.set_attributes(request.attributes)  # type: ignore[arg-type]  # services set what spans can hold
            elif status >= 400 or request.keep_span:
                request.attributes |= {"http.response.status_code": status, "url.path": path}
                tracing.record_unsampled(
                    self._telemetry,
                    span,
                    caller,
                    request,
                    name=name,
                    failed=status >= 500,
                    start_nanos=start_nanos,
                    fixed=(("http.request.method", scope["method"]),),
                )
            span.end()

    async def _answer(self, scope: Scope, receive: Receive, send: Send, request: RequestContext) -> None:
        headers = request.metadata
        try:
            request.deadline, request.tenant = _deadline(headers), headers.get(TENANT, "")
        except TreadleError as error:
            await _failed(Request(scope), error)(scope, receive, send)
            return
        # What is unexpected has been answered and logged when Starlette raises it again.
        with request_scope(request), suppress(Exception):
            await self._app(scope, receive, send)


async def _gone(request: Request, error: Exception) -> Response:
    return _failed(request, Cancelled("the caller went away"))  # for the span: nobody reads it


async def _failed_as_said(request: Request, error: Exception) -> Response:
    return _failed(request, error)


def _failed(request: Request, error: Exception) -> Response:
    assert isinstance(error, TreadleError)  # noqa: S101  # that is what it is registered for
    status = 413 if isinstance(error, TooLarge) else _HTTP_STATUS.get(error.code, 500)
    content: dict[str, Any] = {"error": error.message}
    if not request.url.path.startswith("/v2"):
        content["code"] = error.code.name
        content["violations"] = [{"field": v.field, "description": v.description} for v in error.violations]
    headers = {}
    if error.retry_after_seconds is not None:
        headers["retry-after"] = str(max(1, round(error.retry_after_seconds)))
    return reply(content, status, headers)


def _deadline(headers: Mapping[str, str]) -> float | None:
    text = headers.get(TIMEOUT_HEADER)
    if text is None:
        return None
    try:
        seconds = float(text)
    except ValueError:
        seconds = float("nan")
    if not 0 < seconds < 86_400:
        if seconds <= 0:
            raise DeadlineExceeded("the deadline had passed when the call arrived")
        raise InvalidInput(f"header {TIMEOUT_HEADER} must be a number of seconds")
    return time.monotonic() + seconds


async def _no_route(request: Request, error: Exception) -> Response:
    status = int(getattr(error, "status_code", 404))
    what = "this path takes another method" if status == 405 else "there is nothing under this path"
    code = "UNIMPLEMENTED" if status == 405 else "NOT_FOUND"
    message = f"{what}; see /openapi.json"
    if request.url.path.startswith("/v2"):
        return reply({"error": message}, status)
    return reply({"error": message, "code": code, "violations": []}, status)
