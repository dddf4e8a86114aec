"""REST: a pure ASGI application over the same core as gRPC.

Treadle's own errors are `{"error": message, "code": "INVALID_ARGUMENT", "violations": […]}`, with the HTTP status of
the code. OIP's paths under `/v2` answer errors in its form, `{"error": message}`, with the same statuses.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware.exceptions import ExceptionMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Mount, Route
from starlette.types import ASGIApp

from treadle.core.errors import Cancelled, InvalidInput, TreadleError
from treadle.gateway.api.annotation import annotate
from treadle.gateway.api.grpc.oip_servicer import OipServicer
from treadle.gateway.api.rest import json_codec, openapi
from treadle.gateway.api.rest import oip as rest_oip
from treadle.gateway.api.rest.reply import reply
from treadle.gateway.pipeline.pipeline import PredictionPipeline
from treadle.gateway.pipeline.stages.routing import parse_version
from treadle.observability.telemetry.telemetry import Telemetry
from treadle.rpc.context import current
from treadle.rpc.server.http import AsgiApp, TelemetryMiddleware, http_status

UNTRACED = frozenset({"/healthz", "/v2/health/live", "/v2/health/ready"})
"""Probes: they come every few seconds from machines and tell nothing about requests."""
UNKNOWN_ROUTE = "other"
"""The route of requests for which there is nothing, in spans and metrics."""


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
        try:
            async for chunk in request.stream():
                received += chunk
                if len(received) > self._max_body_bytes:
                    raise TooLarge(f"the body is larger than {self._max_body_bytes} bytes; send fewer rows")
        except ClientDisconnect:
            raise Cancelled("the caller went away") from None
        return bytes(received)


def make_app(rest: Rest, telemetry: Telemetry, mounts: Mapping[str, AsgiApp] = MappingProxyType({})) -> AsgiApp:
    """The application as uvicorn (or Envoy) hosts it.

    `mounts` are further ASGI applications by their path prefix ("/console"). Their requests are instrumented as those
    of REST, and what they raise is answered as REST's own errors.
    """
    routes: list[Route | Mount] = [*rest.routes(), *(Mount(prefix, app) for prefix, app in mounts.items())]

    def route_template(path: str) -> str:
        return next((route.path_format for route in routes if route.path_regex.match(path)), UNKNOWN_ROUTE)

    return TelemetryMiddleware(
        _Application(routes=routes, exception_handlers={HTTPException: _no_route}),
        telemetry,
        route_template=route_template,
        error_response=error_response,
        untraced=UNTRACED,
    )


class _Application(Starlette):
    """Routes alone: Starlette's own middleware would answer errors, which `TelemetryMiddleware` does."""

    def build_middleware_stack(self) -> ASGIApp:
        return ExceptionMiddleware(self.router, self.exception_handlers)


def error_response(path: str, error: TreadleError) -> Response:
    """The answer to a request of `path` that ended with `error`, in the Open Inference Protocol's form below /v2."""
    status = 413 if isinstance(error, TooLarge) else http_status(error)
    content: dict[str, Any] = {"error": error.message}
    if not path.startswith("/v2"):
        content["code"] = error.code.name
        content["violations"] = [{"field": v.field, "description": v.description} for v in error.violations]
    headers = {}
    if error.retry_after_seconds is not None:
        headers["retry-after"] = str(max(1, round(error.retry_after_seconds)))
    return reply(content, status, headers)


async def _no_route(request: Request, error: Exception) -> Response:
    """The answer to a path, or a method on a path, for which there is no route."""
    status = int(getattr(error, "status_code", 404))
    what = "this path takes another method" if status == 405 else "there is nothing under this path"
    code = "UNIMPLEMENTED" if status == 405 else "NOT_FOUND"
    message = f"{what}; see /openapi.json"
    if request.url.path.startswith("/v2"):
        return reply({"error": message}, status)
    return reply({"error": message, "code": code, "violations": []}, status)
