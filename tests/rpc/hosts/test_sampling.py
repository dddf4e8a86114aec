"""Which requests of a real process leave spans, on either host, as a collector receives them."""

import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

from treadle.observability.telemetry.redaction import Redactor, SpanGuard
from treadle.observability.tracestore.otlp_ingest import read_request
from treadle.observability.tracestore.spans import SpanRecord
from treadle.rpc.hosts.choice import envoy_unavailable_reason
from treadle.v1 import prediction_pb2, prediction_pb2_grpc

pytestmark = pytest.mark.slow

PROGRAM = Path(__file__).parents[1] / "importable" / "traced_member.py"
PREDICT = "treadle.v1.PredictionService/Predict"
PARENT = "cd" * 8
BOUND = 5
"""Traces a second where a test wants to see the bound."""
only_envoy = pytest.mark.parametrize("host", ["envoy"], indirect=True)


def caller(trace: int, flags: str) -> str:
    return f"00-{trace:032x}-{PARENT}-{flags}"


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """Keeps spans as the trace store reads them."""

    def __init__(self) -> None:
        self.spans: list[SpanRecord] = []

    async def Export(self, request: Any, context: Any) -> trace_service_pb2.ExportTraceServiceResponse:
        self.spans += read_request(request, SpanGuard(Redactor())).spans
        return trace_service_pb2.ExportTraceServiceResponse()


@dataclass
class Member:
    """A member in a process of its own."""

    channel: grpc.aio.Channel
    process: asyncio.subprocess.Process
    collector: Collector

    async def ask(self, name: str, traceparent: str = "", **options: Any) -> str:
        """The answer, or the name of the status."""
        stub = prediction_pb2_grpc.PredictionServiceStub(self.channel)
        metadata = [*options.pop("metadata", []), *([("traceparent", traceparent)] if traceparent else [])]
        try:
            response = await stub.Predict(prediction_pb2.PredictRequest(deployment=name), metadata=metadata, **options)
        except grpc.aio.AioRpcError as error:
            return error.code().name
        return str(response.request_id)

    async def all_spans(self) -> list[SpanRecord]:
        """Every span of the process, which sends the last of them when it ends."""
        self.process.terminate()
        await self.process.wait()
        return self.collector.spans


Start = Callable[..., Any]


@pytest.fixture(params=["grpcio", "envoy"])
def host(request: pytest.FixtureRequest) -> str:
    if request.param == "envoy" and (missing := envoy_unavailable_reason()):
        pytest.skip(missing)
    return str(request.param)


@pytest.fixture
def start(host: str, tmp_path: Path) -> Start:
    """`async with start(TRACES_PER_SECOND="5") as member`."""

    @asynccontextmanager
    async def run(**settings: str) -> AsyncIterator[Member]:
        server, collector = grpc.aio.server(), Collector()
        trace_service_pb2_grpc.add_TraceServiceServicer_to_server(collector, server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        listen = f"unix:{tmp_path / 'member.sock'}"
        environ = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(PROGRAM.parent), *filter(None, sys.path)]),
            "TREADLE_LISTEN": listen,
            "TREADLE_HOME": str(tmp_path),
            "TREADLE_OTLP_ENDPOINT": f"http://127.0.0.1:{port}",
            "TREADLE_LOG_LEVEL": "critical",
            **{f"TREADLE_{name}": value for name, value in settings.items()},
        }
        process = await asyncio.create_subprocess_exec(sys.executable, str(PROGRAM), host, env=environ)
        try:
            async with grpc.aio.insecure_channel(listen) as channel:
                await asyncio.wait_for(channel.channel_ready(), 30)
                yield Member(channel, process, collector)
        finally:
            if process.returncode is None:
                process.terminate()
            await process.wait()
            await server.stop(None)

    return run


async def test_a_quiet_process_records_every_request(start: Start) -> None:
    async with start() as member:
        for number in range(20):
            assert await member.ask("x", caller(number + 1, "01") if number % 2 else "") == "x"
        spans = await member.all_spans()
    assert len(spans) == len({span.trace_id for span in spans}) == 20
    assert {(span.service, span.name, span.kind, span.status) for span in spans} == {
        ("member", PREDICT, "server", "unset")
    }
    assert spans[0].attributes == {"rpc.system.name": "grpc", "rpc.method": PREDICT, "rpc.status_code": "OK"}
    followed = [(span.trace_id, span.parent_id) for span in spans if span.parent_id]
    assert followed == [(f"{number + 1:032x}", PARENT) for number in range(1, 20, 2)]


@pytest.mark.parametrize("flags", ["", "01"])
async def test_under_load_a_bounded_number_is_recorded(start: Start, flags: str) -> None:
    """Without a caller's context, and for sampled callers."""
    async with start(TRACES_PER_SECOND=str(BOUND)) as member:
        began = time.monotonic()
        for round_ in range(10):
            asked = range(round_ * 30 + 1, round_ * 30 + 31)
            await asyncio.gather(*(member.ask("x", caller(number, flags) if flags else "") for number in asked))
        seconds = time.monotonic() - began
        spans = await member.all_spans()
    assert BOUND <= len(spans) <= BOUND * (seconds + 1)
    assert len({span.trace_id for span in spans}) == len(spans)


async def test_a_caller_over_the_bound_goes_on_unsampled_in_its_own_trace(start: Start) -> None:
    async with start(TRACES_PER_SECOND="0") as member:
        passed_on = await member.ask("traceparent", caller(7, "01"))
        spans = await member.all_spans()
    assert spans == []
    assert (passed_on[3:35], passed_on[-2:]) == (f"{7:032x}", "00")
    assert passed_on[36:52] != PARENT


@pytest.mark.parametrize("settings", [{"TRACES_PER_SECOND": "0"}, {"TRACE_RATIO": "0"}, {}])
async def test_what_fails_or_is_degraded_leaves_a_span_though_it_is_not_sampled(
    start: Start, settings: dict[str, str]
) -> None:
    names = ["x", "invalid", "overloaded", "crash", "degraded", "x"]
    async with start(**settings) as member:
        began = time.time_ns()
        codes = [await member.ask(name, caller(number, "00")) for number, name in enumerate(names, 1)]
        ended = time.time_ns()
        spans = await member.all_spans()
    assert codes == ["x", "INVALID_ARGUMENT", "RESOURCE_EXHAUSTED", "INTERNAL", "degraded", "x"]
    assert [(span.trace_id, span.parent_id) for span in spans] == [(f"{n:032x}", PARENT) for n in (2, 3, 4, 5)]
    assert all(began <= span.start_nanos <= span.start_nanos + span.duration_nanos <= ended for span in spans)
    grpc_call = {"rpc.system.name": "grpc", "rpc.method": PREDICT}
    assert [span.status for span in spans] == ["error", "error", "error", "unset"]
    for span, code in zip(spans, codes[1:4], strict=False):
        own = {"treadle.deployment": "income"} if code == "INVALID_ARGUMENT" else {}
        assert span.attributes == {**grpc_call, "rpc.status_code": code, "error.type": code, **own}
    degraded = {"treadle.degraded_reason": "timeout", "treadle.version": 3}
    assert spans[3].attributes == {**grpc_call, "rpc.status_code": "OK", **degraded}


async def test_a_stream_that_fails_leaves_a_span(start: Start) -> None:
    async with start(TRACES_PER_SECOND="0") as member:
        stub = prediction_pb2_grpc.PredictionServiceStub(member.channel)
        for number, names in enumerate((["x", "invalid"], ["x", "degraded"], ["x", "x"]), 1):
            requests = (prediction_pb2.PredictRequest(deployment=name) for name in names)
            call: Any = stub.PredictStream(requests, metadata=[("traceparent", caller(number, "01"))])
            with suppress(grpc.aio.AioRpcError):
                assert [each.request_id async for each in call] == names
        spans = await member.all_spans()
    assert [(int(span.trace_id, 16), span.status) for span in spans] == [(1, "error"), (2, "unset")]
    assert all(span.attributes["treadle.stream"] is True for span in spans)


async def test_a_call_that_its_caller_gave_up_says_why(start: Start) -> None:
    async with start(TRACES_PER_SECOND="0") as member:
        assert await member.ask("hang", caller(1, "00"), timeout=0.2) == "DEADLINE_EXCEEDED"
        left = asyncio.ensure_future(member.ask("hang", caller(2, "00")))
        for _ in range(3):  # the first of which may come before it
            assert await member.ask("x") == "x"
        left.cancel()
        await asyncio.wait([left])
        assert await member.ask("x") == "x"
        spans = sorted(await member.all_spans(), key=lambda span: span.trace_id)
    assert [span.attributes["rpc.status_code"] for span in spans] == ["DEADLINE_EXCEEDED", "CANCELLED"]


async def test_a_forced_share_has_no_bound(start: Start) -> None:
    async with start(TRACE_RATIO="1", TRACES_PER_SECOND=str(BOUND)) as member:
        await asyncio.gather(*(member.ask("x") for _ in range(150)))
        spans = await member.all_spans()
    assert len(spans) == 150


async def test_a_share_is_a_share(start: Start) -> None:
    async with start(TRACE_RATIO="0.5") as member:
        for _ in range(4):
            await asyncio.gather(*(member.ask("x") for _ in range(50)))
        for number in range(1, 6):
            await member.ask("x", caller(number, "01"))
            await member.ask("x", caller(number + 10, "00"))
        spans = await member.all_spans()
    followed = [int(span.trace_id, 16) for span in spans if span.parent_id]
    assert followed == [1, 2, 3, 4, 5]
    assert 50 <= len(spans) - len(followed) <= 150


async def test_health_checks_leave_no_spans(start: Start) -> None:
    async with start(TRACE_RATIO="1") as member:
        for method in ("/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Nothing"):
            call: Any = member.channel.unary_unary(method)
            with suppress(grpc.aio.AioRpcError):  # there is no such method
                await call(b"", metadata=[("traceparent", caller(1, "01"))])
        assert await member.all_spans() == []


@only_envoy
async def test_what_is_refused_before_a_handler_leaves_a_span(start: Start) -> None:
    async with start(TRACES_PER_SECOND="0") as member:
        for number, (method, message) in enumerate(((f"/{PREDICT}", b"\xff"), ("/no.Service/Method", b"")), 1):
            call: Any = member.channel.unary_unary(method)
            with pytest.raises(grpc.aio.AioRpcError):
                await call(message, metadata=[("traceparent", caller(number, "00"))])
        spans = await member.all_spans()
    assert [(span.name, span.attributes["error.type"]) for span in spans] == [
        (PREDICT, "INVALID_ARGUMENT"),
        ("no.Service/Method", "UNIMPLEMENTED"),
    ]


@only_envoy
async def test_bad_trace_contexts_begin_traces_and_arrivals_cannot_be_forged(start: Start) -> None:
    bad = ["rubbish", caller(0, "01"), caller(1, "01") + "-x", caller(1, "1"), caller(0xAB, "01").upper()]
    async with start() as member:
        began = time.time_ns()
        for header in bad:
            passed_on = await member.ask("traceparent", header, metadata=[("treadle-arrival", "5")])
            assert passed_on[3:35] not in header
        spans = await member.all_spans()
    assert [span.parent_id for span in spans] == [""] * len(bad)
    assert all(span.start_nanos >= began for span in spans)
