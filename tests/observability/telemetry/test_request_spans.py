"""Server spans that are encoded by hand, read back by the protobuf library and the trace store."""

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from treadle.observability.telemetry import request_spans
from treadle.observability.telemetry.redaction import Redactor, SpanGuard
from treadle.observability.telemetry.request_spans import (
    MAX_UNSAMPLED,
    RequestSpan,
    RequestSpanRecorder,
    SpanEncoder,
)
from treadle.observability.tracestore.otlp_ingest import read_request

RESOURCE = {"service.name": "treadle-gateway", "process.pid": 17}
values = st.one_of(st.booleans(), st.integers(), st.floats(allow_nan=False), st.text())
spans = st.builds(
    RequestSpan,
    name=st.text(min_size=1),
    trace_id=st.integers(1, 2**128 - 1).map("{:032x}".format),
    span_id=st.integers(1, 2**64 - 1).map("{:016x}".format),
    parent_id=st.one_of(st.just(""), st.integers(1, 2**64 - 1).map("{:016x}".format)),
    start_nanos=st.integers(1, 2**62),
    end_nanos=st.integers(1, 2**62),
    failed=st.booleans(),
    sampled=st.booleans(),
    fixed=st.lists(st.tuples(st.sampled_from(["rpc.method", "password"]), st.text()), max_size=2).map(tuple),
    attributes=st.dictionaries(st.sampled_from(["treadle.a", "treadle.b", "undeclared", "treadle.token"]), values),
)


def one(name: str = "x", *, sampled: bool = False) -> RequestSpan:
    return RequestSpan(name, "ab" * 16, "cd" * 8, "", 1, 2, True, sampled, (), {})


@given(st.lists(spans, max_size=5))
def test_what_is_encoded_is_what_the_protobuf_library_reads(given: list[RequestSpan]) -> None:
    guard = SpanGuard(Redactor())
    request = ExportTraceServiceRequest.FromString(SpanEncoder(RESOURCE, guard.allows).encode(given))
    (resource,) = request.resource_spans
    assert {pair.key for pair in resource.resource.attributes} == set(RESOURCE)
    read = list(resource.scope_spans[0].spans)
    assert len(read) == len(given)
    for sent, got in zip(given, read, strict=True):
        assert (got.name, got.kind) == (sent.name, Span.SPAN_KIND_SERVER)
        assert (got.trace_id.hex(), got.span_id.hex(), got.parent_span_id.hex()) == sent[1:4]
        assert (got.start_time_unix_nano, got.end_time_unix_nano) == (sent.start_nanos, sent.end_nanos)
        assert (got.status.code == Status.STATUS_CODE_ERROR) is sent.failed
        attributes = {pair.key: pair.value for pair in got.attributes}
        assert set(attributes) == {key for key in (*dict(sent.fixed), *sent.attributes) if guard.allows(key)}
        for key, value in sent.attributes.items():
            if guard.allows(key):
                kind = attributes[key].WhichOneof("value")
                expected = value if kind != "string_value" else str(value)[:1024]
                assert getattr(attributes[key], str(kind)) == expected


def test_the_trace_store_reads_it() -> None:
    span = RequestSpan(
        "s/M", "ab" * 16, "cd" * 8, "ef" * 8, 5, 9, True, False, (("rpc.method", "s/M"),), {"treadle.n": 3}
    )
    guard = SpanGuard(Redactor())
    request = ExportTraceServiceRequest.FromString(SpanEncoder(RESOURCE, guard.allows).encode([span]))
    (record,) = read_request(request, guard).spans
    assert (record.service, record.name, record.kind, record.status) == ("gateway", "s/M", "server", "error")
    assert (record.parent_id, record.start_nanos, record.duration_nanos) == ("ef" * 8, 5, 4)
    assert record.attributes == {"rpc.method": "s/M", "treadle.n": 3}


class Sent:
    """What a recorder sends, held back until `go`."""

    def __init__(self, *, arrives: bool = True) -> None:
        self.names: list[str] = []
        self.lost = 0
        self._arrives = arrives

    def send(self, request: bytes, count: int) -> bool:
        read = ExportTraceServiceRequest.FromString(request).resource_spans[0].scope_spans[0].spans
        assert len(read) == count
        self.names += [span.name for span in read]
        return self._arrives

    def lose(self, count: int) -> None:
        self.lost += count


@pytest.fixture
def no_flush(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spans leave when the recorder is closed, and not before."""
    monkeypatch.setattr(request_spans, "FLUSH_SECONDS", threading.TIMEOUT_MAX)


def recorder(sent: Sent) -> RequestSpanRecorder:
    return RequestSpanRecorder(sent.send, RESOURCE, allows=lambda key: True, on_lost=sent.lose)


def test_closing_sends_what_is_queued(no_flush: None) -> None:
    sent = Sent()
    made = recorder(sent)
    for number in range(1_200):
        made.record(one(str(number)))
    made.close()
    assert sent.names == [str(number) for number in range(1_200)]
    assert sent.lost == 0


def test_a_flood_of_failures_is_bounded_and_counted_and_leaves_room_for_samples(no_flush: None) -> None:
    sent = Sent()
    made = recorder(sent)
    for _ in range(MAX_UNSAMPLED + 50):
        made.record(one("failed"))
    made.record(one("sampled", sampled=True))
    made.close()
    assert sent.names == ["failed"] * MAX_UNSAMPLED + ["sampled"]
    assert sent.lost == 50


def test_a_recorder_that_closes_does_not_wait_for_a_collector_that_is_away(no_flush: None) -> None:
    sent = Sent(arrives=False)
    made = recorder(sent)
    for _ in range(1_200):
        made.record(one())
    made.close()
    assert 0 < len(sent.names) < 1_200


def test_without_requests_there_is_no_thread() -> None:
    before = threading.active_count()
    recorder(Sent()).close()
    assert threading.active_count() == before
