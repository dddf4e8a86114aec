"""The span store: what is kept, what is found, what is let go."""

from pathlib import Path

import pytest

from treadle.observability.tracestore.proto_codec import (
    summary_from_proto,
    summary_to_proto,
    trace_from_proto,
    trace_to_proto,
)
from treadle.observability.tracestore.spans import SpanEvent
from treadle.observability.tracestore.store import AmbiguousTraceError, Retention, SpanStore, UnknownTraceError

from ..conftest import span


def test_a_trace_comes_back_as_it_went_in(tmp_path: Path) -> None:
    first = span(1, attributes={"treadle.rows": 3, "treadle.x": ["a", 1.5, True]}, status="error", kind="server")
    second = span(2, parent=1, start=5, events=(SpanEvent("exception", 9, {"exception.type": "E"}),))
    batch = span(3, trace=2, links=((first.trace_id, second.span_id),))
    below = span(4, trace=2, parent=3, start=1)
    with SpanStore(tmp_path / "t.db") as store:
        assert store.add([second, first, batch, below]) == 4
        assert store.add([first]) == 0
        trace = store.trace(first.trace_id)
        assert trace.spans == (first, second)
        assert trace.linked == (batch, below)
        assert store.trace(batch.trace_id).linked == ()
        assert trace_from_proto(trace_to_proto(trace)) == trace
        with pytest.raises(UnknownTraceError):
            store.trace("ff")
        with pytest.raises(AmbiguousTraceError):
            store.trace("0000")
    with SpanStore(tmp_path / "t.db") as again:
        assert again.count() == 4


def test_slowest_counts_requests_once_and_leaves_batches_and_streams_out(tmp_path: Path) -> None:
    with SpanStore(tmp_path / "t.db") as store:
        for trace in (1, 2, 3):
            root = span(1, trace=trace, ms=trace, attributes={"treadle.deployment": f"d{trace % 2}"})
            store.add([root, span(2, trace=trace, parent=1, ms=0.5 * (4 - trace), service="features", status="error")])
        store.add([span(1, trace=8, ms=99, links=((f"{1:032x}", f"{1:016x}"),))])
        store.add([span(1, trace=9, ms=99, attributes={"treadle.stream": True})])
        slowest = store.slowest()
        assert [int(each.trace_id, 16) for each in slowest] == [3, 2, 1]
        assert (slowest[0].services, slowest[0].errors, slowest[0].deployment) == (("features", "gateway"), 1, "d1")
        assert [int(each.trace_id, 16) for each in store.slowest(deployment="d1", limit=1)] == [3]
        assert [int(each.trace_id, 16) for each in store.slowest(service="features")] == [1, 2, 3]
        assert store.slowest(since_nanos=2**62) == []
        assert summary_from_proto(summary_to_proto(slowest[0])) == slowest[0]


@pytest.mark.parametrize(
    ("retention", "most"),
    [(Retention(max_spans=100), 100), (Retention(max_bytes=100_000), 600), (Retention(max_age_seconds=50), 50)],
)
def test_the_oldest_go_first_with_their_links(tmp_path: Path, retention: Retention, most: int) -> None:
    now = [0.0]
    with SpanStore(tmp_path / "t.db", retention, clock=lambda: now[0]) as store:
        for number in range(1, 1001):
            now[0] = float(number)
            store.add([span(number, trace=number, links=((f"{1:032x}", f"{1:016x}"),))])
        assert store.expire() > 0
        assert 0 < store.count() <= most + 1
        assert store.trace(f"{1000:032x}").spans
        links = store._db.execute("SELECT count(*) FROM links").fetchone()[0]
        assert links == store.count()
        now[0] += 10**9
        store.expire()
        assert store.expire() == 0
