"""Metrics, propagation and the exporter, over real sockets."""

import io
import urllib.request
from pathlib import Path

import pytest
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Link, SpanKind

from treadle.observability.edges import (
    REQUEST_EDGES,
    SERVICE_EDGES,
    SIGNAL_MATRIX,
    missing_edges,
    missing_signals,
    undeclared_edges,
)
from treadle.observability.telemetry.metrics import OTHER, Meters, serve_metrics
from treadle.observability.telemetry.otlp import OtlpExporter, encode
from treadle.observability.telemetry.propagation import extract, inject, parse_traceparent, trace_id_of
from treadle.observability.telemetry.redaction import Redactor, SpanGuard
from treadle.observability.telemetry.telemetry import MAX_LINKS, Telemetry, setup
from treadle.observability.tracestore.otlp_ingest import read_request


def test_label_sets_past_the_limit_become_other() -> None:
    meters = Meters(label_sets=3)
    counter = meters.counter("treadle_x_total", "x", ["model"])
    for number in range(10):
        counter.add(model=f"m{number}")
    assert meters.registry.get_sample_value("treadle_x_total", {"model": OTHER}) == 7
    assert meters.registry.get_sample_value("treadle_metrics_overflow_total", {"metric": "treadle_x_total"}) == 7
    assert meters.counter("treadle_x_total", "x", ["model"]) is counter
    with pytest.raises(TypeError, match="model"):
        counter.add(version="1")
    with pytest.raises(ValueError, match="already"):
        meters.gauge("treadle_x_total", "x", ["model"])


def test_scrapes_carry_exemplars_if_they_ask() -> None:
    meters = Meters()
    meters.histogram("call_seconds", "c", ["m"]).observe(0.003, exemplar="ab" * 16, m="a")
    with serve_metrics(meters) as server:
        url = f"http://127.0.0.1:{server.port}/metrics"
        asked = urllib.request.Request(url, headers={"Accept": "application/openmetrics-text"})
        with urllib.request.urlopen(asked) as rich, urllib.request.urlopen(url) as plain:
            assert b'trace_id="abab' in rich.read()
            assert b'call_seconds_bucket{le="0.005",m="a"} 1.0' in plain.read()


def test_a_trace_continues_through_metadata() -> None:
    caller, callee = Telemetry.recording("gateway"), Telemetry.recording("features")
    with caller.tracer.start_as_current_span("call", kind=SpanKind.CLIENT) as span:
        metadata = [("te", "trailers"), *inject(span)]
    callee.tracer.start_span("serve", context=extract(metadata), kind=SpanKind.SERVER).end()
    parent = callee.spans[0].parent
    assert parent is not None
    assert parent.is_remote
    sent = span.get_span_context()
    assert (parent.trace_id, parent.span_id, parent.trace_flags) == (sent.trace_id, sent.span_id, sent.trace_flags)
    assert trace_id_of(callee.tracer.start_span("x", context=Context())) != trace_id_of(span)


@pytest.mark.parametrize(
    "header",
    ["", "garbage", "00-" + "0" * 32 + "-" + "1" * 16 + "-01", "ff-" + "1" * 32 + "-" + "1" * 16 + "-01",
     "00-" + "1" * 32 + "-" + "0" * 16 + "-01", "00-" + "G" * 32 + "-" + "1" * 16 + "-01", "0-1-1-1",
     "00-" + "1" * 32 + "-" + "1" * 16 + "-01-x"],
)  # fmt: skip
def test_a_bad_header_starts_a_new_trace(header: str) -> None:
    assert parse_traceparent(header) is None
    assert not trace.get_current_span(extract([("traceparent", header)])).get_span_context().is_valid


def test_what_is_encoded_can_be_read_back() -> None:
    telemetry = Telemetry.recording("inference")
    with telemetry.tracer.start_as_current_span("request") as request:
        pass
    links = [Link(request.get_span_context())] * 1000
    attributes: dict[str, str | int | bool | list[str]] = {"treadle.rows": 2**40, "treadle.x": ["a"], "rpc.ok": True}
    with telemetry.tracer.start_as_current_span("batch", links=links, attributes=attributes):
        pass
    intake = read_request(encode(telemetry.spans), SpanGuard(Redactor()))
    assert intake.rejected == 0
    assert [(each.service, each.name, len(each.links)) for each in intake.spans] == [
        ("inference", "request", 0),
        ("inference", "batch", 1000),
    ]
    assert intake.spans[1].attributes == attributes
    assert MAX_LINKS >= 1000


def test_an_absent_collector_is_mentioned_once_and_counted(tmp_path: Path) -> None:
    telemetry = Telemetry.recording()
    for _ in range(3):
        telemetry.tracer.start_span("x").end()
    lost: list[int] = []
    heard: list[str] = []
    exporter = OtlpExporter(f"unix:{tmp_path / 'nobody'}", on_lost=lost.append, on_change=heard.append)
    for span in telemetry.spans:
        exporter.export([span])
    exporter.shutdown()
    exporter.export(telemetry.spans)
    assert lost == [1, 1, 1]
    assert heard == ["UNAVAILABLE"]


@pytest.mark.parametrize("endpoint", ["ftp://host:1", "http://", ""])
def test_a_bad_endpoint_is_an_error(endpoint: str) -> None:
    with pytest.raises(ValueError, match="OTLP endpoint"):
        OtlpExporter(endpoint)


async def test_without_an_endpoint_there_are_trace_ids_and_no_spans(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr", io.StringIO())
    telemetry = setup("gateway")
    span = telemetry.tracer.start_span("x")
    assert len(trace_id_of(span)) == 32
    assert not span.is_recording()
    assert Telemetry.off().spans == ()
    await telemetry.aclose()


def test_edges_are_seen_where_a_child_is_of_another_service() -> None:
    telemetry = {name: Telemetry.recording(name) for name in ("gateway", "inference")}
    with telemetry["gateway"].tracer.start_as_current_span("call") as span:
        pass
    child = telemetry["inference"].tracer.start_span(
        "inference.GRPCInferenceService/ModelInfer", context=trace.set_span_in_context(span)
    )
    child.end()
    guard = SpanGuard(Redactor())
    spans = [record for each in telemetry.values() for record in read_request(encode(each.spans), guard).spans]
    missing = missing_edges(spans, REQUEST_EDGES)
    assert [(edge.caller, edge.callee) for edge in missing] == [("gateway", "features")]
    assert undeclared_edges(spans, SERVICE_EDGES) == set()
    assert undeclared_edges(spans, ()) == {("gateway", "inference")}
    assert missing_signals(telemetry) == {"features", "evaluation", "registry"}
    assert {name for edge in SERVICE_EDGES for name in (edge.caller, edge.callee)} <= SIGNAL_MATRIX.keys()
