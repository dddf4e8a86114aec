"""The trace store as a service: its settings, and how its parts are put together.

It must not export spans of its own, which would come back to it for ever: `telemetry.setup` sees to that.
"""

from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Annotated

from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc

from treadle.core.settings import Settings, bounds
from treadle.observability.telemetry.metrics import Counter
from treadle.observability.telemetry.redaction import SpanGuard
from treadle.observability.tracestore.store import Retention, SpanStore
from treadle.rpc.app.runtime import Runtime
from treadle.traces.servicers import OnDisk, Queries, Receiver, on_thread
from treadle.v1 import traces_pb2_grpc


@dataclass(frozen=True)
class TraceSettings(Settings):
    """TREADLE_TRACES_…"""

    max_spans: Annotated[int, bounds(1, 1_000_000_000)] = 500_000
    """The oldest go beyond this many."""
    max_mib: Annotated[int, bounds(1, 1 << 30)] = 512
    """The oldest go when the database is larger."""
    max_age_hours: Annotated[float, bounds(0.001, 1_000_000)] = 168.0
    """The oldest go this long after they came."""
    expire_seconds: Annotated[float, bounds(0.001, 3_600)] = 10.0
    """How often to look whether some must go."""


@asynccontextmanager
async def open_service(settings: TraceSettings, runtime: Runtime) -> AsyncIterator[None]:
    """Opens the database in the service's home, then serves. A damaged one is put aside."""
    retention = Retention(settings.max_spans, settings.max_mib << 20, settings.max_age_hours * 3600)
    async with AsyncExitStack() as stack:
        executor = ThreadPoolExecutor(1, thread_name_prefix="traces")
        stack.callback(executor.shutdown)
        on_disk = on_thread(executor)
        store: SpanStore = await on_disk(lambda: SpanStore(runtime.home / "traces.db", retention))
        stack.push_async_callback(on_disk, store.close)
        receiver = Receiver(store, SpanGuard(runtime.telemetry.redactor), on_disk)
        trace_service_pb2_grpc.add_TraceServiceServicer_to_server(receiver, runtime.server)  # type: ignore[no-untyped-call]  # as generated
        traces_pb2_grpc.add_TraceQueryServiceServicer_to_server(Queries(store, on_disk), runtime.server)
        background = await stack.enter_async_context(runtime.background())
        expired = runtime.telemetry.meters.counter("treadle_traces_expired_total", "Spans that retention let go.")
        background.every("expire_traces", settings.expire_seconds, partial(_expire, store, on_disk, expired))
        yield


async def _expire(store: SpanStore, on_disk: OnDisk, expired: Counter) -> None:
    expired.add(await on_disk(store.expire))
