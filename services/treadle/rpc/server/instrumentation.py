"""What surrounds every call, over gRPC or HTTP: its request context, span, metric, and the mapping of its errors."""

import asyncio
import time
import uuid
from collections.abc import Callable, Mapping
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
from treadle.rpc.contracts import is_traced

Attributes = Mapping[str, str | bool | int]
_GRPC_CODE = "rpc.status_code"


def _with_status(
    attributes: Attributes, code_attribute: str, code: str | int, *, failed: bool
) -> tuple[tuple[str, str | bool | int], ...]:
    error = {"error.type": str(code)} if failed else {}
    return tuple({**attributes, code_attribute: code, **error}.items())


def _grpc_attributes(method: str, *, streams: bool) -> Attributes:
    attributes: dict[str, str | bool | int] = {"rpc.system.name": "grpc", "rpc.method": method}
    if streams:  # it lasts as long as its caller likes, so its time tells nothing about slowness
        attributes["treadle.stream"] = True
    return attributes


@lru_cache(1024)
def fixed_attributes(method: str, code: str, *, streams: bool) -> tuple[tuple[str, str | bool | int], ...]:
    """Attributes of the span of a call of "package.Service/Method" that ended with `code`."""
    return _with_status(_grpc_attributes(method, streams=streams), _GRPC_CODE, code, failed=code != "OK")


class Instrumentation:
    """What the calls of one operation, a gRPC method or an HTTP route, share: the name of their spans, their metric.

    Attributes have OpenTelemetry's names ("rpc.method"); the metric's labels have the same names with underscores.
    """

    def __init__(
        self,
        name: str,
        telemetry: Telemetry,
        seconds: Histogram,
        *,
        dimensions: Mapping[str, str],
        code_attribute: str,
        attributes: Attributes,
        traced: bool,
    ) -> None:
        """`attributes` are those of every span, `dimensions` those that are labels of the metric as well.

        `code_attribute` holds the status of a call: "rpc.status_code".
        """
        self.name = name
        self.telemetry = telemetry
        self.code_attribute = code_attribute
        self.traced = traced
        self._seconds = seconds
        self._attributes = attributes
        self._labels = {_label(attribute): value for attribute, value in dimensions.items()}
        self._by_code: dict[str | int, Callable[..., None]] = {}

    def measured(self, code: str | int, seconds: float, exemplar: str) -> None:
        """Counts one call that has ended."""
        observe = self._by_code.get(code)
        if observe is None:
            observe = self._seconds.bound(**self._labels, **{_label(self.code_attribute): code})
            self._by_code[code] = observe
        observe(seconds, exemplar)

    def start_span(self, caller: Context) -> trace.Span:
        """The SDK's span of a call whose host makes none, a child of the caller's span."""
        if not self.traced:
            return trace.INVALID_SPAN
        return self.telemetry.tracer.start_span(
            self.name, context=caller, kind=SpanKind.SERVER, attributes=self._attributes
        )

    def record_unsampled(
        self, call: RequestContext, span: trace.Span, caller: Context, code: str | int, seconds: float, *, failed: bool
    ) -> None:
        """Records the span of a call that the SDK's sampler dropped."""
        if not self.traced:
            return
        tracing.record_unsampled(
            self.telemetry,
            span,
            caller,
            call,
            name=self.name,
            failed=failed,
            start_nanos=time.time_ns() - int(seconds * 1e9),
            fixed=_with_status(self._attributes, self.code_attribute, code, failed=failed),
        )


def _label(attribute: str) -> str:
    return attribute.replace(".", "_")


class MethodInstrumentation(Instrumentation):
    """What the calls of one gRPC method share."""

    def __init__(self, method: str, telemetry: Telemetry, seconds: Histogram, *, streams: bool) -> None:
        """`method` is "/package.Service/Method"; `streams`: whether it answers with a stream."""
        super().__init__(
            method[1:],
            telemetry,
            seconds,
            dimensions={"rpc.method": method[1:]},
            code_attribute=_GRPC_CODE,
            attributes=_grpc_attributes(method[1:], streams=streams),
            traced=is_traced(method),
        )


class CallScope:
    """One call, from arrival to status.

    It keeps its request context, for an abandoned stream is ended from another task, where no call is the present one.
    """

    __slots__ = ("_call", "_caller", "_instrumentation", "_otel", "_span", "_started", "_token")

    def __init__(
        self,
        instrumentation: Instrumentation,
        call: RequestContext,
        span: trace.Span = trace.INVALID_SPAN,
        caller: Context | None = None,
    ) -> None:
        """`span` is the SDK's, `caller` the trace context that it continues; without them the host makes the span."""
        self._instrumentation = instrumentation
        self._started = time.perf_counter()
        self._call = call
        self._span = span
        self._caller = caller

    def begin(self) -> None:
        """Makes the call and its span the present ones. DeadlineExceeded if it came too late."""
        call = self._call
        if call.sampled and self._instrumentation.traced:
            self._span = span_of(call.traceparent)
        self._otel = tracing.attach(self._span) if self._span is not trace.INVALID_SPAN else None
        self._token = call_context.enter(call)
        if call.deadline is not None and call.deadline <= time.monotonic():
            raise DeadlineExceeded("the deadline had passed when the call arrived")

    def ended(self, code: str | int, *, failed: bool, rejected: bool = False) -> None:
        """Measures the call, ends its span.

        `failed`: the span shows an error. `rejected`: the request was at fault, so the span shows none. Both leave a
        span though the call is not sampled.
        """
        call, seconds, recording = self._call, time.perf_counter() - self._started, self._span.is_recording()
        self._instrumentation.measured(code, seconds, call.trace_id if call.sampled or recording else "")
        if recording:
            self._span.set_attributes(call.attributes)  # type: ignore[arg-type]  # services set what spans can hold
            self._span.set_attribute(self._instrumentation.code_attribute, code)
            if failed:
                self._span.set_attribute("error.type", str(code))
                self._span.set_status(StatusCode.ERROR)
        elif self._caller is not None and (failed or rejected or call.keep_span):
            self._instrumentation.record_unsampled(call, self._span, self._caller, code, seconds, failed=failed)
        self._span.end()
        if self._otel is not None:
            tracing.detach(self._otel)
        call_context.leave(self._token)

    def to_error(self, error: BaseException) -> TreadleError:
        """What the caller is told of `error`. An unforeseen one becomes Internal with an error id, and is logged."""
        if isinstance(error, TreadleError):
            return error
        if isinstance(error, grpc.aio.AioRpcError):
            return from_rpc(error)
        if is_spurious_cancellation(error):
            return Unavailable("something that this call waited for was cancelled; try again")
        if isinstance(error, asyncio.CancelledError | GeneratorExit):
            late = self._call.deadline is not None and self._call.deadline <= time.monotonic()
            return DeadlineExceeded("the deadline passed") if late else Cancelled("the caller went away")
        return unexpected(self._instrumentation.telemetry, self._instrumentation.name, error)


class GrpcCallScope(CallScope):
    """One gRPC call of a servicer."""

    __slots__ = ("_context",)

    def __init__(self, instrumentation: MethodInstrumentation, context: Any) -> None:
        """`context` is what the host gives to the servicer; its `call` is the request context, where it has one."""
        self._context = context
        call = getattr(context, "call", None)
        if isinstance(call, RequestContext):
            super().__init__(instrumentation, call)
            return
        received = context.invocation_metadata() or ()
        caller = extract(received, is_remote=not getattr(context, "is_local", False))
        span = instrumentation.start_span(caller)
        left = context.time_remaining()
        call = RequestContext.from_metadata(
            {key: value for key, value in received if isinstance(value, str)},
            deadline=None if left is None else time.monotonic() + left,
            trace_id=trace_id_of(span),
        )
        super().__init__(instrumentation, call, span, caller)

    def succeeded(self) -> None:
        """Ends the call with OK."""
        self.ended("OK", failed=False)

    async def failed(self, error: BaseException) -> None:
        """Ends the call with the status of `error`, unless nobody is left to tell."""
        aborted = isinstance(error, grpc.aio.AbortError)  # by the servicer itself, with a status of its own
        mapped = None if aborted else self.to_error(error)
        code = self._aborted_code() if mapped is None else mapped.code.name
        self.ended(code, failed=code != "OK")
        cancelled = isinstance(error, GeneratorExit) or (
            isinstance(error, asyncio.CancelledError) and not is_spurious_cancellation(error)
        )
        if mapped is not None and not cancelled:
            await self._context.abort(mapped.code, mapped.message, mapped.trailing_metadata())

    def _aborted_code(self) -> str:
        code = self._context.code()
        return code.name if isinstance(code, grpc.StatusCode) else "UNKNOWN"


def unexpected(telemetry: Telemetry, name: str, error: BaseException) -> Internal:
    """Logs an error that nobody foresaw in a call of the operation `name`. The caller gets its id in the log alone."""
    error_id = uuid.uuid4().hex[:12]
    telemetry.log.error("a call failed unexpectedly", method=name, error_id=error_id, exc_info=error)
    return Internal(f"internal error {error_id}: the server's log tells more under this id")
