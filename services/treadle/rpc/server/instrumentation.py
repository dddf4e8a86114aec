"""What surrounds every call of a method: its request context, span, metrics, and the status of its errors."""

import asyncio
import time
import uuid
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import grpc
import grpc.aio
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import SpanKind, StatusCode

from treadle.core.errors import Cancelled, DeadlineExceeded, Internal, TreadleError, Unavailable, from_rpc
from treadle.observability.telemetry.metrics import Histogram
from treadle.observability.telemetry.propagation import extract, span_of, trace_id_of
from treadle.observability.telemetry.telemetry import Telemetry
from treadle.rpc import context as call_context
from treadle.rpc import tracing
from treadle.rpc.client.stream_status import is_spurious_cancellation
from treadle.rpc.context import RequestContext

# Their calls come every few seconds from machines and tell nothing about requests.
_UNTRACED = ("/grpc.health.", "/grpc.reflection.", "/opentelemetry.")


def is_traced(method: str) -> bool:
    """Whether calls of "/package.Service/Method" may leave spans."""
    return not method.startswith(_UNTRACED)


@lru_cache(1024)
def fixed_attributes(method: str, code: str, *, streams: bool) -> tuple[tuple[str, str | bool], ...]:
    """Attributes of the span of a call of "package.Service/Method" that ended with `code`."""
    attributes: dict[str, str | bool] = {
        "rpc.system.name": "grpc",
        "rpc.method": method,
        "rpc.status_code": code,
    }
    if streams:  # it lasts as long as its caller likes, so its time tells nothing about slowness
        attributes["treadle.stream"] = True
    if code != "OK":
        attributes["error.type"] = code
    return tuple(attributes.items())


class MethodInstrumentation:
    """What the calls of one method share."""

    def __init__(self, method: str, telemetry: Telemetry, seconds: Histogram, *, streams: bool) -> None:
        self.method = method
        self.telemetry = telemetry
        self.streams = streams
        self.traced = is_traced(method)
        self._seconds = seconds
        self._by_code: dict[str, Callable[..., None]] = {}

    def measured(self, code: str, seconds: float, exemplar: str) -> None:
        """Counts one call that has ended."""
        observe = self._by_code.get(code)
        if observe is None:
            observe = self._seconds.bound(rpc_method=self.method[1:], rpc_status_code=code)
            self._by_code[code] = observe
        observe(seconds, exemplar)

    def start_span(self, caller: Context) -> trace.Span:
        """The SDK's span of a call whose host makes none."""
        if not self.traced:
            return trace.INVALID_SPAN
        span: trace.Span = self.telemetry.tracer.start_span(
            self.method[1:],
            context=caller,
            kind=SpanKind.SERVER,
            attributes={"rpc.system.name": "grpc", "rpc.method": self.method[1:]},
        )
        if self.streams:  # it lasts as long as its caller likes, so its time tells nothing about slowness
            span.set_attribute("treadle.stream", True)
        return span

    def record_unsampled(
        self, call: RequestContext, span: trace.Span, caller: Context, code: str, seconds: float
    ) -> None:
        """Records the span of a call that the SDK's sampler dropped."""
        if not self.traced:
            return
        tracing.record_unsampled(
            self.telemetry,
            span,
            caller,
            call,
            name=self.method[1:],
            failed=code != "OK",
            start_nanos=time.time_ns() - int(seconds * 1e9),
            fixed=fixed_attributes(self.method[1:], code, streams=self.streams),
        )


class CallScope:
    """One call, from arrival to status.

    It keeps its `Call`, for an abandoned stream is ended from another context, where no call is the present one.
    """

    __slots__ = ("_call", "_caller", "_context", "_instrumentation", "_otel", "_span", "_started", "_token")

    def __init__(self, instrumentation: MethodInstrumentation, context: Any) -> None:
        self._instrumentation = instrumentation
        self._context = context
        self._started = time.perf_counter()
        self._span: trace.Span = trace.INVALID_SPAN
        self._caller: Context | None = None
        call = getattr(context, "call", None)
        self._call: RequestContext = call if isinstance(call, RequestContext) else self._received()

    def _received(self) -> RequestContext:
        """The call as grpcio describes it, with a span of the SDK."""
        received = self._context.invocation_metadata() or ()
        metadata = {k: v for k, v in received if isinstance(v, str)}
        self._caller = extract(received, is_remote=not getattr(self._context, "is_local", False))
        self._span = self._instrumentation.start_span(self._caller)
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
        if call.sampled and self._instrumentation.traced:
            self._span = span_of(call.traceparent)
        self._otel = tracing.attach(self._span) if self._span is not trace.INVALID_SPAN else None
        self._token = call_context.enter(call)
        if call.deadline is not None and call.deadline <= time.monotonic():
            raise DeadlineExceeded("the deadline had passed when the call arrived")

    def ended(self, code: str) -> None:
        """Measures the call, ends its span."""
        call, seconds, recording = self._call, time.perf_counter() - self._started, self._span.is_recording()
        self._instrumentation.measured(code, seconds, call.trace_id if call.sampled or recording else "")
        if recording:
            self._span.set_attributes(call.attributes)  # type: ignore[arg-type]  # services set what spans can hold
            self._span.set_attribute("rpc.status_code", code)
            if code != "OK":
                self._span.set_attribute("error.type", code)
                self._span.set_status(StatusCode.ERROR)
        elif self._caller is not None and (code != "OK" or call.keep_span):
            self._instrumentation.record_unsampled(call, self._span, self._caller, code, seconds)
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
            isinstance(error, asyncio.CancelledError) and not is_spurious_cancellation(error)
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
        if is_spurious_cancellation(error):
            return Unavailable("something that this call waited for was cancelled; try again")
        if isinstance(error, asyncio.CancelledError | GeneratorExit):
            late = self._call.deadline is not None and self._call.deadline <= time.monotonic()
            return DeadlineExceeded("the deadline passed") if late else Cancelled("the caller went away")
        return unexpected(self._instrumentation.telemetry, self._instrumentation.method, error)


def unexpected(telemetry: Telemetry, method: str, error: BaseException) -> Internal:
    """What a caller is told of an error that nobody foresaw: where the log has more."""
    error_id = uuid.uuid4().hex[:12]
    telemetry.log.error("a call failed unexpectedly", method=method, error_id=error_id, exc_info=error)
    return Internal(f"internal error {error_id}: the server's log tells more under this id")
