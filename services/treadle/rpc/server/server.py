"""The server seam: every handler of every service runs inside the one wrapper made here.

`Server` looks to generated `add_*Servicer_to_server` functions like a `grpc.aio.Server`. It collects handlers and
wraps each so that a call has its `Call` context, its span, its metrics, and its errors mapped to a status. What then
hosts the wrapped handlers (grpcio here) is told nothing about them.
"""

import asyncio
import inspect
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from typing import Any, TypeAlias

import grpc
import grpc.aio
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import DecodeError
from opentelemetry import trace
from opentelemetry.trace import SpanKind, StatusCode

from treadle.core.errors import Cancelled, DeadlineExceeded, Internal, InvalidInput, TreadleError, Unavailable, from_rpc
from treadle.observability.telemetry.metrics import Histogram
from treadle.observability.telemetry.propagation import extract, span_of, trace_id_of
from treadle.observability.telemetry.telemetry import Telemetry
from treadle.rpc import context as call_context
from treadle.rpc import tracing
from treadle.rpc.client.stream_status import cancelled_by_nobody
from treadle.rpc.context import RequestContext

# Their calls come every few seconds from machines and tell nothing about requests.
_UNTRACED = ("/grpc.health.", "/grpc.reflection.", "/opentelemetry.")

# Generic in the type stubs alone.
_Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
# Stands for the many types of messages that pass through untouched.
Behaviour = Callable[[Any, Any], Any]
_Reader = Callable[[Any], Any]


class Server(grpc.GenericRpcHandler):
    """Collects the handlers of servicers; hosts ask it for the wrapped handler of a method."""

    def __init__(self, telemetry: Telemetry) -> None:
        self._telemetry = telemetry
        self._handlers: list[grpc.GenericRpcHandler] = []
        self._wrapped: dict[str, _Handler] = {}
        self._raw: set[str] = set()
        self._seconds = telemetry.meters.histogram(
            "rpc_server_call_duration_seconds",
            "Time from the arrival of a call to its answer.",
            ["rpc_method", "rpc_status_code"],
        )
        self.pools: list[DescriptorPool] = []

    def add_generic_rpc_handlers(self, generic_rpc_handlers: Iterable[grpc.GenericRpcHandler]) -> None:
        """What generated code calls for each servicer."""
        self._handlers.extend(generic_rpc_handlers)

    def add_registered_method_handlers(self, service_name: str, method_handlers: Mapping[str, _Handler]) -> None:
        """What generated code calls besides; the generic handlers know all of it already."""

    def add_descriptor_pool(self, pool: DescriptorPool) -> None:
        """Lets reflection find the messages of a private pool."""
        self.pools.append(pool)

    def unexpected(self, method: str, error: BaseException) -> Internal:
        """The error of a call that failed outside of its handler, such as in writing its answer."""
        return unexpected(self._telemetry, method, error)

    @property
    def name(self) -> str:
        """The bare name of the service, such as "gateway"."""
        return self._telemetry.service

    @property
    def service_names(self) -> list[str]:
        """Full names of the services added: "treadle.v1.FeatureService"."""
        return [h.service_name() for h in self._handlers if isinstance(h, grpc.ServiceRpcHandler)]

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> "_Handler | None":
        """The wrapped handler of a method, or None: the host then answers UNIMPLEMENTED."""
        method = handler_call_details.method
        if method not in self._wrapped:
            found = (h.service(handler_call_details) for h in self._handlers)
            handler = next((h for h in found if h is not None), None)
            if handler is None:
                return None
            self._wrapped[method] = self._wrap(method, handler)
        return self._wrapped[method]

    def is_typed(self, method: str) -> bool:
        """Whether the handler takes messages; others take their bytes. For methods that `service` has found."""
        return method not in self._raw

    def _wrap(self, method: str, handler: _Handler) -> _Handler:
        if handler.request_deserializer is None:
            self._raw.add(method)
        many_in, many_out = handler.request_streaming, handler.response_streaming
        kind = f"{'stream' if many_in else 'unary'}_{'stream' if many_out else 'unary'}"
        behaviour: Behaviour = getattr(handler, kind)
        yields = many_out and inspect.isasyncgenfunction(behaviour)  # else it calls `context.write` itself
        read = _reader(handler)
        seam = _Seam(method, self._telemetry, self._seconds, streams=many_out)
        wrapped = _generator(seam, behaviour, read) if yields else _coroutine(seam, behaviour, read)
        make: Any = getattr(grpc, f"{kind}_rpc_method_handler")
        return make(wrapped, None, handler.response_serializer)  # type: ignore[no-any-return]  # chosen by name


def _coroutine(seam: "_Seam", behaviour: Behaviour, read: _Reader) -> Behaviour:
    async def call(request: Any, context: Any) -> Any:
        observed = _Observed(seam, context)
        try:
            observed.begin()
            response = await behaviour(read(request), context)
        except BaseException as error:
            await observed.failed(error)
            raise
        observed.ended("OK")
        return response

    return call


def _generator(seam: "_Seam", behaviour: Behaviour, read: _Reader) -> Behaviour:
    async def stream(request: Any, context: Any) -> AsyncIterator[Any]:
        observed = _Observed(seam, context)
        try:
            observed.begin()
            async for response in behaviour(read(request), context):
                yield response
        except BaseException as error:
            await observed.failed(error)
            raise
        observed.ended("OK")

    return stream


def _reader(handler: _Handler) -> _Reader:
    """Makes a request, or an iterator of requests, of what the host received as bytes.

    Done inside the wrapper, so that bytes which are no message are the caller's error like any other.
    """
    parse = handler.request_deserializer or (lambda data: data)

    def one(data: Any) -> Any:
        if not isinstance(data, bytes):  # from a caller in this process
            return data
        try:
            return parse(data)
        except DecodeError:
            raise InvalidInput("the bytes received are no valid message of this method's request type") from None

    async def many(stream: AsyncIterator[Any]) -> AsyncIterator[Any]:
        async for data in stream:
            yield one(data)

    return many if handler.request_streaming else one


class _Seam:
    """What the calls of one method share."""

    def __init__(self, method: str, telemetry: Telemetry, seconds: Histogram, *, streams: bool) -> None:
        self.method = method
        self.telemetry = telemetry
        self.streams = streams
        self.traced = not method.startswith(_UNTRACED)
        self._seconds = seconds
        self._by_code: dict[str, Callable[..., None]] = {}

    def measured(self, code: str, seconds: float, exemplar: str) -> None:
        """Counts one call that has ended."""
        observe = self._by_code.get(code)
        if observe is None:
            observe = self._seconds.bound(rpc_method=self.method[1:], rpc_status_code=code)
            self._by_code[code] = observe
        observe(seconds, exemplar)

    def start_span(self, metadata: Iterable[tuple[str, str | bytes]]) -> trace.Span:
        """The span of a call that its host does not record."""
        if not self.traced:
            return trace.INVALID_SPAN
        span: trace.Span = self.telemetry.tracer.start_span(
            self.method[1:],
            context=extract(metadata),
            kind=SpanKind.SERVER,
            attributes={"rpc.system.name": "grpc", "rpc.method": self.method[1:]},
        )
        if self.streams:  # it lasts as long as its caller likes, so its time tells nothing about slowness
            span.set_attribute("treadle.stream", True)
        return span


class _Observed:
    """One call, from arrival to status.

    It keeps its `Call`, for an abandoned stream is ended from another context, where no call is the present one.
    """

    __slots__ = ("_call", "_context", "_otel", "_seam", "_span", "_started", "_token")

    def __init__(self, seam: _Seam, context: Any) -> None:
        self._seam = seam
        self._context = context
        self._started = time.perf_counter()
        self._span: trace.Span = trace.INVALID_SPAN
        call = getattr(context, "call", None)
        self._call: RequestContext = call if isinstance(call, RequestContext) else self._received()

    def _received(self) -> RequestContext:
        """The call as grpcio tells of it; its span is ours to record."""
        received = self._context.invocation_metadata() or ()
        metadata = {k: v for k, v in received if isinstance(v, str)}
        self._span = self._seam.start_span(received)
        left = self._context.time_remaining()
        return RequestContext(
            deadline=None if left is None else time.monotonic() + left,
            tenant=metadata.get(call_context.TENANT, ""),
            metadata=metadata,
            trace_id=trace_id_of(self._span),
        )

    def begin(self) -> None:
        """Makes the call and its span the present ones. DeadlineExceeded if it came too late."""
        call = self._call
        if call.sampled and self._seam.traced:
            self._span = span_of(call.traceparent)
        self._otel = tracing.attach(self._span) if self._span is not trace.INVALID_SPAN else None
        self._token = call_context.enter(call)
        if call.deadline is not None and call.deadline <= time.monotonic():
            raise DeadlineExceeded("the deadline had passed when the call arrived")

    def ended(self, code: str) -> None:
        """Measures the call, ends its span."""
        sampled = self._call.sampled or self._span.is_recording()
        self._seam.measured(code, time.perf_counter() - self._started, self._call.trace_id if sampled else "")
        if self._span.is_recording():
            self._span.set_attribute("rpc.status_code", code)
            if code != "OK":
                self._span.set_attribute("error.type", code)
                self._span.set_status(StatusCode.ERROR)
        self._span.end()
        if self._otel is not None:
            tracing.detach(self._otel)
        call_context.leave(self._token)

    async def failed(self, error: BaseException) -> None:
        """Ends the call with the status of `error`, unless nobody is left to tell."""
        aborted = isinstance(error, grpc.aio.AbortError)  # by the servicer itself, with a status of its own
        mapped = None if aborted else self._map(error)
        self.ended(self._aborted_code() if mapped is None else mapped.code.name)
        cancelled = isinstance(error, GeneratorExit) or (
            isinstance(error, asyncio.CancelledError) and not cancelled_by_nobody(error)
        )
        if mapped is not None and not cancelled:
            await self._context.abort(mapped.code, mapped.message, mapped.trailing_metadata())

    def _aborted_code(self) -> str:
        code = self._context.code()
        return code.name if isinstance(code, grpc.StatusCode) else "UNKNOWN"

    def _map(self, error: BaseException) -> TreadleError:
        if isinstance(error, TreadleError):
            return error
        if isinstance(error, grpc.aio.AioRpcError):
            return from_rpc(error)
        if cancelled_by_nobody(error):
            return Unavailable("something that this call waited for was cancelled; try again")
        if isinstance(error, asyncio.CancelledError | GeneratorExit):
            late = self._call.deadline is not None and self._call.deadline <= time.monotonic()
            return DeadlineExceeded("the deadline passed") if late else Cancelled("the caller went away")
        return unexpected(self._seam.telemetry, self._seam.method, error)


def unexpected(telemetry: Telemetry, method: str, error: BaseException) -> Internal:
    """What a caller is told of an error that nobody foresaw: where the log has more."""
    error_id = uuid.uuid4().hex[:12]
    telemetry.log.error("a call failed unexpectedly", method=method, error_id=error_id, exc_info=error)
    return Internal(f"internal error {error_id}: the server's log tells more under this id")
