"""The gRPC services of the trace store: OTLP's TraceService takes spans, TraceQueryService reads them."""

import asyncio
import re
import sqlite3
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

from treadle.core.errors import FailedPrecondition, InvalidInput, NotFound, Overloaded, StorageFull
from treadle.observability.telemetry.redaction import SpanGuard
from treadle.observability.tracestore.otlp_ingest import MAX_SPANS, read_request
from treadle.observability.tracestore.proto_codec import summary_to_proto, trace_to_proto
from treadle.observability.tracestore.store import AmbiguousTraceError, SpanStore, UnknownTraceError
from treadle.v1 import traces_pb2, traces_pb2_grpc

T = TypeVar("T")

OnDisk = Callable[[Callable[[], Any]], Awaitable[Any]]
"""Runs a function of the store on the thread that owns it."""

_MAX_WAITING = 64
"""Requests to store that may wait for the disk."""
MAX_LIMIT = 1000
_DEFAULT_LIMIT = 20
_ID = re.compile(r"[0-9a-f]{4,32}")


class Receiver(trace_service_pb2_grpc.TraceServiceServicer):
    """Stores what exporters send; refuses rather than hoards when the disk is slower than they are."""

    def __init__(self, store: SpanStore, guard: SpanGuard, on_disk: OnDisk) -> None:
        self._store = store
        self._guard = guard
        self._on_disk = on_disk
        self._waiting = 0

    async def Export(
        self, request: trace_service_pb2.ExportTraceServiceRequest, context: Any
    ) -> trace_service_pb2.ExportTraceServiceResponse:
        """Overloaded if too many requests wait; StorageFull if the disk is. Bad spans are counted, not fatal."""
        if self._waiting >= _MAX_WAITING:
            raise Overloaded("the trace store is behind: sample less, or send later", retry_after_seconds=1.0)
        self._waiting += 1
        try:
            rejected = await self._on_disk(lambda: self._keep(request))
        except sqlite3.OperationalError as error:
            raise StorageFull(
                f"the trace store cannot write ({error.sqlite_errorname}): make room on its disk"
            ) from error
        finally:
            self._waiting -= 1
        response = trace_service_pb2.ExportTraceServiceResponse()
        if rejected:
            response.partial_success.rejected_spans = rejected
            response.partial_success.error_message = (
                f"spans need valid ids and times, and {MAX_SPANS} at most fit a request"
            )
        return response

    def _keep(self, request: trace_service_pb2.ExportTraceServiceRequest) -> int:
        intake = read_request(request, self._guard)
        self._store.add(intake.spans)
        return intake.rejected


class Queries(traces_pb2_grpc.TraceQueryServiceServicer):
    """Slow traces, and one trace."""

    def __init__(self, store: SpanStore, on_disk: OnDisk) -> None:
        self._store = store
        self._on_disk = on_disk

    async def SlowestTraces(
        self, request: traces_pb2.SlowestTracesRequest, context: Any
    ) -> traces_pb2.SlowestTracesResponse:
        """InvalidInput for a limit outside 0…1000 or a negative window."""
        if not 0 <= request.limit <= MAX_LIMIT:
            raise InvalidInput(f"limit is {request.limit}: want 1 to {MAX_LIMIT}, or 0 for {_DEFAULT_LIMIT}")
        if not 0 <= request.within_seconds < 1e9:
            raise InvalidInput("within_seconds must be 0 (everything) or a positive number of seconds")
        since = int((time.time() - request.within_seconds) * 1e9) if request.within_seconds else 0
        found = await self._on_disk(
            lambda: self._store.slowest(
                service=request.service.removeprefix("treadle-"),
                deployment=request.deployment,
                since_nanos=since,
                limit=request.limit or _DEFAULT_LIMIT,
            )
        )
        return traces_pb2.SlowestTracesResponse(traces=[summary_to_proto(summary) for summary in found])

    async def GetTrace(self, request: traces_pb2.GetTraceRequest, context: Any) -> traces_pb2.Trace:
        """InvalidInput, NotFound, FailedPrecondition: see the contract."""
        prefix = request.trace_id.lower()
        if not _ID.fullmatch(prefix):
            raise InvalidInput("trace_id: want 4 to 32 hexadecimal digits")
        try:
            return trace_to_proto(await self._on_disk(lambda: self._store.trace(prefix)))
        except UnknownTraceError:
            raise NotFound(
                f"no trace {prefix}: it was not sampled, has not arrived yet (wait 2 s), or has aged out"
            ) from None
        except AmbiguousTraceError:
            raise FailedPrecondition(f"several traces begin with {prefix}: give more digits") from None


def on_thread(executor: Any) -> OnDisk:
    """Runs calls one after the other on `executor`."""

    async def run(function: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(executor, function)

    return run
