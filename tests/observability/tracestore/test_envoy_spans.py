"""Spans of Envoy, as the trace store reads them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, Span

from treadle.observability.telemetry.redaction import Redactor, SpanGuard
from treadle.observability.telemetry.span_attributes import REQUEST_ATTRIBUTES
from treadle.observability.tracestore.envoy_spans import MARK
from treadle.observability.tracestore.otlp_ingest import read_request
from treadle.observability.tracestore.spans import SpanRecord

METHOD = "treadle.v1.FeatureService/GetOnlineFeatures"


def pairs(texts: dict[str, str]) -> list[KeyValue]:
    return [KeyValue(key=key, value=AnyValue(string_value=text)) for key, text in texts.items()]


def read(
    texts: dict[str, str], *, ms: int = 5, name: str = f"/{METHOD}", redactor: Redactor | None = None
) -> SpanRecord:
    """The record of a span that Envoy sent with these attributes."""
    span = Span(
        trace_id=b"t" * 16, span_id=b"s" * 8, name=name, kind=Span.SPAN_KIND_SERVER,
        start_time_unix_nano=10, end_time_unix_nano=10 + ms * 1_000_000, attributes=pairs(texts),
    )  # fmt: skip
    resource = Resource(attributes=pairs({"service.name": "treadle-features", MARK[0]: MARK[1]}))
    request = ExportTraceServiceRequest(
        resource_spans=[ResourceSpans(resource=resource, scope_spans=[ScopeSpans(spans=[span])])]
    )
    return read_request(request, SpanGuard(redactor or Redactor())).spans[0]


def test_only_what_is_declared_is_kept_and_has_its_type() -> None:
    envoys_own = {"component": "proxy", "http.url": "http://x/", "user_agent": "curl", "peer.address": "10.0.0.1"}
    ours = {"rpc.method": f"/{METHOD}", "rpc.status_code": "OK", "treadle.rows": "7", "treadle.stream": "true"}
    record = read({**envoys_own, "http.method": "POST", "grpc.message": "m", "treadle.batch.queue_ms": "0.5", **ours})
    assert (record.name, record.service, record.kind, record.status) == (METHOD, "features", "server", "unset")
    assert record.attributes == {
        "rpc.method": METHOD, "rpc.status_code": "OK",
        "treadle.rows": 7, "treadle.batch.queue_ms": 0.5, "treadle.stream": True,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("texts", "ms", "code"),
    [
        ({"rpc.status_code": "OK"}, 5, "OK"),
        ({"rpc.status_code": "NOT_FOUND"}, 5, "NOT_FOUND"),
        ({"response_flags": "DR"}, 5, "CANCELLED"),
        ({"response_flags": "DR", "rpc.status_code": "UNKNOWN"}, 5, "CANCELLED"),
        ({"response_flags": "DR", "rpc.status_code": "OK"}, 5, "OK"),
        ({"response_flags": "DR", "grpc.timeout": "4m"}, 5, "DEADLINE_EXCEEDED"),
        ({"response_flags": "DR", "grpc.timeout": "5000u"}, 5, "DEADLINE_EXCEEDED"),
        ({"response_flags": "DR", "grpc.timeout": "1S"}, 5, "CANCELLED"),
        ({"response_flags": "DR", "grpc.timeout": "²m"}, 5, "CANCELLED"),
        ({"response_flags": "DR", "grpc.timeout": "m"}, 5, "CANCELLED"),
        ({"response_flags": "-"}, 5, "UNKNOWN"),
    ],
)
def test_every_call_has_a_status(texts: dict[str, str], ms: int, code: str) -> None:
    record = read(texts, ms=ms)
    assert record.attributes["rpc.status_code"] == code
    assert (record.status, record.attributes.get("error.type")) == (
        ("unset", None) if code == "OK" else ("error", code)
    )


def test_a_process_of_several_services_says_whose_span_it_is() -> None:
    record = read({"treadle.service": "inference"})
    assert record.service == "inference"
    assert "treadle.service" not in record.attributes


def test_sensitive_names_are_withheld_from_them_too() -> None:
    assert "treadle.model" not in read({"treadle.model": "m"}, redactor=Redactor(["model"])).attributes


@given(st.dictionaries(st.sampled_from(sorted(REQUEST_ATTRIBUTES)), st.text()), st.text())
def test_any_text_is_read(texts: dict[str, str], name: str) -> None:
    record = read(texts, name=name)
    for key, text in texts.items() - {("treadle.service", texts.get("treadle.service"))}:
        value = record.attributes[key]
        assert isinstance(value, str | int) or (isinstance(value, float) and -1e308 < value < 1e308)
        assert value in (text[:1024], REQUEST_ATTRIBUTES[key](text) if not isinstance(value, str) else None)
