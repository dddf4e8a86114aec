"""The server seam: every handler of every service runs inside the one wrapper made here.

`Server` looks to generated `add_*Servicer_to_server` functions like a `grpc.aio.Server`. It collects handlers and
wraps each so that a call has its `Call` context, its span, its metrics, and its errors mapped to a status. What then
hosts the wrapped handlers (grpcio here) is told nothing about them.
"""

import asyncio
import functools
import inspect
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import ExitStack
from types import TracebackType
from typing import Any, TypeAlias

import grpc
import grpc.aio
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import DecodeError
from opentelemetry import trace
from opentelemetry.trace import SpanKind, StatusCode

from treadle.observability.propagation import extract, trace_id_of
from treadle.observability.telemetry import Telemetry
from treadle.rpc import context as call_context
from treadle.rpc import tracing
from treadle.rpc.context import Call
from treadle.rpc.ending import cancelled_by_nobody
from treadle.rpc.errors import Cancelled, DeadlineExceeded, Internal, InvalidInput, TreadleError, Unavailable, from_rpc

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

    def _wrap(self, method: str, handler: _Handler) -> _Handler:
        many_in, many_out = handler.request_streaming, handler.response_streaming
        kind = f"{'stream' if many_in else 'unary'}_{'stream' if many_out else 'unary'}"
        behaviour: Behaviour = getattr(handler, kind)
        yields = many_out and inspect.isasyncgenfunction(behaviour)  # else it calls `context.write` itself
        read = _reader(handler)
        observed = functools.partial(_Observed, method, self._telemetry, self._seconds.observe, many_out)
        wrapped = _generator(observed, behaviour, read) if yields else _coroutine(observed, behaviour, read)
        make: Any = getattr(grpc, f"{kind}_rpc_method_handler")
        return make(wrapped, None, handler.response_serializer)  # type: ignore[no-any-return]  # chosen by name


def _coroutine(observed: Callable[[Any], "_Observed"], behaviour: Behaviour, read: _Reader) -> Behaviour:
    async def call(request: Any, context: Any) -> Any:
        async with observed(context):
            return await behaviour(read(request), context)

    return call


def _generator(observed: Callable[[Any], "_Observed"], behaviour: Behaviour, read: _Reader) -> Behaviour:
    async def stream(request: Any, context: Any) -> AsyncIterator[Any]:
        async with observed(context):
            async for response in behaviour(read(request), context):
                yield response

    return stream


def _reader(handler: _Handler) -> _Reader:
    """Makes a request, or an iterator of requests, of what the host received as bytes.

    Done inside the wrapper, so that bytes which are no message are the caller's error like any other.
    """
    parse = handler.request_deserializer or (lambda data: data)

    def one(data: bytes) -> Any:
        try:
            return parse(data)
        except DecodeError:
            raise InvalidInput("the bytes received are no valid message of this method's request type") from None

    async def many(stream: AsyncIterator[bytes]) -> AsyncIterator[Any]:
        async for data in stream:
            yield one(data)

    return many if handler.request_streaming else one


class _Observed:
    """One call, from arrival to status.

    It keeps its `Call`, for an abandoned stream is ended from another context, where no call is the present one.
    """

    def __init__(
        self, method: str, telemetry: Telemetry, seconds: Callable[..., None], streams: bool, context: Any
    ) -> None:
        self._method = method
        self._context = context
        self._telemetry = telemetry
        self._seconds = seconds
        self._streams = streams
        self._stack = ExitStack()

    async def __aenter__(self) -> None:
        self._started = time.perf_counter()
        received = self._context.invocation_metadata() or ()
        metadata = {k: v for k, v in received if isinstance(v, str)}
        self._span = self._start_span(received)
        left = self._context.time_remaining()
        self._call = Call(
            deadline=None if left is None else time.monotonic() + left,
            tenant=metadata.get(call_context.TENANT, ""),
            metadata=metadata,
            trace_id=trace_id_of(self._span),
        )
        self._stack.enter_context(tracing.active(self._span))
        self._stack.enter_context(call_context.serving(self._call))
        if left is not None and left <= 0:
            await self.__aexit__(None, DeadlineExceeded("the deadline had passed when the call arrived"), None)

    def _start_span(self, metadata: Iterable[tuple[str, str | bytes]]) -> trace.Span:
        if self._method.startswith(_UNTRACED):
            return trace.INVALID_SPAN
        span: trace.Span = self._telemetry.tracer.start_span(
            self._method[1:],
            context=extract(metadata),
            kind=SpanKind.SERVER,
            attributes={"rpc.system.name": "grpc", "rpc.method": self._method[1:]},
        )
        if self._streams:  # it lasts as long as its caller likes, so its time tells nothing about slowness
            span.set_attribute("treadle.stream", True)
        return span

    async def __aexit__(
        self, _: type[BaseException] | None, error: BaseException | None, __: TracebackType | None
    ) -> None:
        aborted = isinstance(error, grpc.aio.AbortError)  # by the servicer itself, with a status of its own
        mapped = None if error is None or aborted else self._map(error)
        code = self._aborted_code() if aborted else "OK" if mapped is None else mapped.code.name
        self._seconds(
            time.perf_counter() - self._started,
            exemplar=self._call.trace_id if self._span.is_recording() else "",
            rpc_method=self._method[1:],
            rpc_status_code=code,
        )
        self._end_span(code)
        self._stack.close()
        # A call that was cancelled has nobody left to tell.
        cancelled = isinstance(error, GeneratorExit) or (
            isinstance(error, asyncio.CancelledError) and not cancelled_by_nobody(error)
        )
        if mapped is not None and not cancelled:
            await self._context.abort(mapped.code, mapped.message, mapped.trailing_metadata())

    def _end_span(self, code: str) -> None:
        if self._span.is_recording():
            self._span.set_attribute("rpc.status_code", code)
            if code != "OK":
                self._span.set_attribute("error.type", code)
                self._span.set_status(StatusCode.ERROR)
        self._span.end()

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
        error_id = uuid.uuid4().hex[:12]
        self._telemetry.log.error("a call failed unexpectedly", method=self._method, error_id=error_id, exc_info=error)
        return Internal(f"internal error {error_id}: the server's log tells more under this id")
