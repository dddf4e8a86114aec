"""The trace store behind its real server: the exporter sends, the queries find, garbage is refused."""

import asyncio
import random
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.trace.v1 import trace_pb2
from opentelemetry.trace import Link

from treadle.core.errors import FailedPrecondition, InvalidInput, NotFound
from treadle.observability.telemetry.telemetry import Telemetry, setup
from treadle.observability.tracestore.proto_codec import trace_from_proto
from treadle.rpc.app.serving import running
from treadle.rpc.client.channel import Channel
from treadle.traces.service import TraceSettings, open_service
from treadle.v1 import traces_pb2, traces_pb2_grpc


@pytest.fixture
async def channel(tmp_path: Path) -> AsyncIterator[Channel]:
    """To a trace store that runs."""
    async with (
        running(open_service, TraceSettings(), home=tmp_path) as address,
        Channel(address, service="traces", telemetry=Telemetry.off()) as channel,
    ):
        yield channel


async def test_what_is_exported_is_found_with_its_batch(channel: Channel) -> None:
    gateway = setup("gateway", otlp_endpoint=f"http://{channel.address}", log_level="critical")
    with gateway.tracer.start_as_current_span("predict", attributes={"treadle.deployment": "delays"}) as request:
        trace_id = f"{request.get_span_context().trace_id:032x}"
    with gateway.tracer.start_as_current_span("batch", links=[Link(request.get_span_context())]):
        pass
    await gateway.aclose()

    queries = traces_pb2_grpc.TraceQueryServiceStub(channel)
    slowest = await queries.SlowestTraces(traces_pb2.SlowestTracesRequest(deployment="delays"))
    found = trace_from_proto(await queries.GetTrace(traces_pb2.GetTraceRequest(trace_id=trace_id[:8].upper())))
    with pytest.raises(NotFound):
        await queries.GetTrace(traces_pb2.GetTraceRequest(trace_id="0" * 32))
    with pytest.raises(InvalidInput):
        await queries.GetTrace(traces_pb2.GetTraceRequest(trace_id="%"))
    for wrong in ({"limit": -1}, {"limit": 1001}, {"within_seconds": -1.0}, {"within_seconds": float("nan")}):
        with pytest.raises(InvalidInput):
            await queries.SlowestTraces(traces_pb2.SlowestTracesRequest(**wrong))
    assert [(summary.trace_id, summary.service, summary.name) for summary in slowest.traces] == [
        (trace_id, "gateway", "predict")
    ]
    assert [span.name for span in found.spans] == ["predict"]
    assert [span.name for span in found.linked] == ["batch"]


async def test_an_ambiguous_prefix_asks_for_more(channel: Channel) -> None:
    spans = [_span(b"\xab\xcd" + bytes([n]) * 14, b"\1" * 8) for n in (1, 2)]
    await trace_service_pb2_grpc.TraceServiceStub(channel).Export(_request(spans))
    with pytest.raises(FailedPrecondition, match="more digits"):
        await traces_pb2_grpc.TraceQueryServiceStub(channel).GetTrace(traces_pb2.GetTraceRequest(trace_id="abcd"))


async def test_garbage_is_counted_and_harms_nobody(channel: Channel) -> None:
    rng = random.Random(7)
    good = _span(b"\1" * 16, b"\1" * 8)
    huge = _span(b"\2" * 16, b"\2" * 8)
    huge.attributes.add(key="treadle.x").value.string_value = "x" * 1_000_000
    huge.attributes.add(key="k" * 1_000_000).value.string_value = "x"
    huge.attributes.add(key="treadle.nan").value.double_value = float("nan")
    late = _span(b"\3" * 16, b"\3" * 8)
    late.start_time_unix_nano = 2**64 - 1
    wrong = [_span(rng.randbytes(rng.randrange(16)), b"\1" * 8) for _ in range(50)]
    async with grpc.aio.insecure_channel(channel.address) as plain:
        stub = trace_service_pb2_grpc.TraceServiceStub(plain)
        answer = await stub.Export(_request([good, huge, late, *wrong]))
        many = [_span(b"\4" * 16, n.to_bytes(8, "big")) for n in range(1, 20_001)]
        answers = await asyncio.gather(*[stub.Export(_request(many)) for _ in range(2)])
    slow = await traces_pb2_grpc.TraceQueryServiceStub(channel).SlowestTraces(traces_pb2.SlowestTracesRequest())
    assert answer.partial_success.rejected_spans == 51
    assert [each.partial_success.rejected_spans for each in answers] == [10_000, 10_000]
    assert {summary.trace_id[:2] for summary in slow.traces} == {"01", "02", "04"}


async def test_a_damaged_database_is_put_aside(tmp_path: Path) -> None:
    (tmp_path / "traces.db").write_bytes(b"no database" * 1000)
    async with running(open_service, TraceSettings(), home=tmp_path):
        pass
    assert (tmp_path / "traces.db.damaged").exists()


def _span(trace_id: bytes, span_id: bytes) -> trace_pb2.Span:
    start = 1_700_000_000_000_000_000
    return trace_pb2.Span(
        trace_id=trace_id, span_id=span_id, name="x", start_time_unix_nano=start, end_time_unix_nano=start + 1000
    )


def _request(spans: list[trace_pb2.Span]) -> trace_service_pb2.ExportTraceServiceRequest:
    scope = trace_pb2.ScopeSpans(spans=spans)
    return trace_service_pb2.ExportTraceServiceRequest(resource_spans=[trace_pb2.ResourceSpans(scope_spans=[scope])])
