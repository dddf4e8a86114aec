"""The instrumentation of HTTP requests: an ASGI middleware that gives them what every gRPC call gets."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection, MutableMapping
from contextlib import suppress
from typing import Any

import grpc

from treadle.core.errors import Cancelled, DeadlineExceeded, InvalidInput, TreadleError
from treadle.observability.telemetry.propagation import extract, trace_id_of
from treadle.observability.telemetry.telemetry import Telemetry
from treadle.rpc.client.stream_status import is_spurious_cancellation
from treadle.rpc.context import RequestContext
from treadle.rpc.server.instrumentation import CallScope, Instrumentation

TIMEOUT_HEADER = "treadle-timeout-seconds"
"""Seconds that the caller waits for the answer: the deadline of HTTP requests, as grpc-timeout is that of calls."""
_MAX_TIMEOUT_SECONDS = 86_400

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
AsgiApp = Callable[[Scope, Receive, Send], Awaitable[None]]

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
# OpenTelemetry's: any other method is "_OTHER", for a caller may send any text as one.
_METHODS = frozenset({"CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "TRACE"})


def http_status(error: TreadleError) -> int:
    """The HTTP status of an error's gRPC code; 500 for those that say nothing to callers."""
    return _HTTP_STATUS.get(error.code, 500)


class TelemetryMiddleware:
    """Runs each HTTP request of an ASGI application as a call: span, deadline, request context, metric, error id.

    An error that the application raises is answered by `error_response`, whatever it is; one that nobody foresaw is
    logged under an id and answered as Internal. At its deadline (`TIMEOUT_HEADER`) a request is cancelled.
    """

    def __init__(
        self,
        app: AsgiApp,
        telemetry: Telemetry,
        *,
        route_template: Callable[[str], str],
        error_response: Callable[[str, TreadleError], AsgiApp],
        untraced: Collection[str] = (),
    ) -> None:
        """`route_template` maps a path to one of a bounded set of templates, for spans and the metric.

        `error_response` makes the answer to a request of a path that failed. `untraced` are templates whose requests
        leave no spans, such as probes of readiness.
        """
        self._app = app
        self._telemetry = telemetry
        self._route_template = route_template
        self._error_response = error_response
        self._untraced = frozenset(untraced)
        self._seconds = telemetry.meters.histogram(
            "http_server_request_duration_seconds",
            "Time from the arrival of an HTTP request to the end of its answer.",
            ["http_request_method", "http_route", "http_response_status_code"],
        )
        self._by_route: dict[tuple[str, str], Instrumentation] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI. What is no HTTP request goes to the application as it is."""
        if scope["type"] == "http":
            await _HttpCall(self._instrumentation(scope), self._error_response, scope, send).run(self._app, receive)
        else:
            await self._app(scope, receive, send)

    def _instrumentation(self, scope: Scope) -> Instrumentation:
        method = scope["method"] if scope["method"] in _METHODS else "_OTHER"
        route = self._route_template(scope["path"])
        instrumentation = self._by_route.get((method, route))
        if instrumentation is None:
            dimensions = {"http.request.method": method, "http.route": route}
            instrumentation = self._by_route[method, route] = Instrumentation(
                f"{method} {route}",
                self._telemetry,
                self._seconds,
                dimensions=dimensions,
                code_attribute="http.response.status_code",
                attributes=dimensions,
                traced=route not in self._untraced,
            )
        return instrumentation


class _HttpCall:
    """One HTTP request, from its headers to the end of its answer."""

    def __init__(
        self,
        instrumentation: Instrumentation,
        error_response: Callable[[str, TreadleError], AsgiApp],
        scope: Scope,
        send: Send,
    ) -> None:
        self._error_response = error_response
        self._scope = scope
        self._send = send
        self._status = 0
        """Of the answer, once it has begun."""
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        self._deadline: float | None = None
        self._refusal: TreadleError | None = None
        try:
            self._deadline = _deadline(headers)
        except InvalidInput as error:
            self._refusal = error
        caller = extract(headers.items())
        span = instrumentation.start_span(caller)
        call = RequestContext.from_metadata(headers, deadline=self._deadline, trace_id=trace_id_of(span))
        self._call_scope = CallScope(instrumentation, call, span, caller)

    async def run(self, app: AsgiApp, receive: Receive) -> None:
        """Runs the application, and answers what it raises. Cancellation is passed on."""
        try:
            self._call_scope.begin()
            if self._refusal is not None:
                raise self._refusal
            await self._run_until_deadline(app, receive)
        except (Exception, asyncio.CancelledError) as error:
            await self._failed(error, receive)
        else:
            self._ended(self._status)

    async def _run_until_deadline(self, app: AsgiApp, receive: Receive) -> None:
        left = None if self._deadline is None else self._deadline - time.monotonic()
        timeout = asyncio.timeout(left)
        try:
            async with timeout:
                await app(self._scope, receive, self._observed_send)
        except TimeoutError as error:
            if not timeout.expired():
                raise
            raise DeadlineExceeded("the deadline passed") from error

    async def _observed_send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._status = message["status"]
        try:
            await self._send(message)
        except OSError as error:  # how a server says that its client has disconnected
            raise Cancelled("the caller went away") from error

    async def _failed(self, error: BaseException, receive: Receive) -> None:
        mapped = self._call_scope.to_error(error)
        cancelled = isinstance(error, asyncio.CancelledError) and not is_spurious_cancellation(error)
        if self._status or cancelled:
            self._ended(http_status(mapped))
            if not isinstance(error, Cancelled):
                raise error  # so that the server breaks off the answer that has begun
            return
        with suppress(Cancelled):  # nobody reads the answer
            await self._error_response(self._scope["path"], mapped)(self._scope, receive, self._observed_send)
        self._ended(self._status)

    def _ended(self, status: int) -> None:
        self._call_scope.ended(status, failed=status >= 500, rejected=400 <= status < 500)


def _deadline(headers: dict[str, str]) -> float | None:
    text = headers.get(TIMEOUT_HEADER)
    if text is None:
        return None
    try:
        seconds = float(text)
    except ValueError:
        seconds = float("nan")
    if not seconds < _MAX_TIMEOUT_SECONDS:
        raise InvalidInput(f"header {TIMEOUT_HEADER} must be a number of seconds")
    return time.monotonic() + seconds
