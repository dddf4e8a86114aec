"""Planted values never come out: of spans on their way to a collector, of log lines."""

import io
import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from treadle.observability.telemetry.logs import capture_stdlib, make_logger
from treadle.observability.telemetry.otlp import encode
from treadle.observability.telemetry.redaction import REDACTED, Redactor
from treadle.observability.telemetry.telemetry import Telemetry

SENSITIVE = ("income", "home_address", "passport.number")
values = st.text("abcdefghijkmnpqrstuvwxyz", min_size=12, max_size=20).map(lambda text: f"§{text}")
keys = st.sampled_from(
    [*SENSITIVE, "treadle.income", "treadle.Home_Address", "treadle.passport.number", "password", "rpc.auth_token"]
) | st.sampled_from(["row", "input", "db.statement", "http.url", "rpc.request.body", "http.request.header.x"])


@given(keys, values)
def test_no_planted_value_leaves_in_a_span(key: str, value: str) -> None:
    telemetry = Telemetry.recording(redactor=Redactor(SENSITIVE))
    with (
        pytest.raises(ValueError, match="§"),
        telemetry.tracer.start_as_current_span("work", attributes={key: value, "treadle.rows": 1}) as span,
    ):
        span.add_event("seen", {key: value})
        raise ValueError(value)
    sent = encode(telemetry.spans).SerializeToString()
    assert value.encode() not in sent
    assert b"ValueError" in sent
    assert b"treadle.rows" in sent


@given(st.sampled_from([*SENSITIVE, "password", "apiKey", "Authorization", "x-auth-token"]), values, st.booleans())
def test_no_planted_value_leaves_in_a_log_line(key: str, value: str, json: bool) -> None:
    stream = io.StringIO()
    log = make_logger("test", Redactor(SENSITIVE), json=json, stream=stream)
    try:
        raise ValueError(value) from KeyError(value)
    except ValueError as error:
        log.exception("failed", **{key: value}, nested=[{key: {"deep": value}}], error=error)
    assert value not in stream.getvalue()
    assert "ValueError" in stream.getvalue()
    assert REDACTED in stream.getvalue()


def test_what_libraries_log_takes_the_same_way(monkeypatch: pytest.MonkeyPatch) -> None:
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])
    monkeypatch.setattr(root, "level", root.level)
    stream = io.StringIO()
    log = make_logger("test", Redactor(), stream=stream)
    for _ in range(2):  # twice is not two lines each
        capture_stdlib(log)
    try:
        int("§planted")
    except ValueError:
        logging.getLogger("grpc").exception("call %d failed", 7)
    logging.getLogger("sqlalchemy.engine").info("parameters: §planted")
    assert stream.getvalue().count("\n") == 1
    assert "call 7 failed" in stream.getvalue()
    assert "§planted" not in stream.getvalue()


def test_ordinary_names_pass() -> None:
    redactor = Redactor(["age"])
    assert not any(redactor.withholds(key) for key in ("rows", "page", "treadle.model", "tokenizer", "storage"))
    redactor.add("rows")
    assert redactor.withholds("Rows")
