"""The layout of the waterfall, and its text."""

import random

import pytest

from treadle.observability.tracestore.spans import Trace, TraceSummary
from treadle.observability.tracestore.waterfall import MAX_ROWS, duration_text, lay_out, render, slow_table, waterfall

from ..conftest import span


def test_a_batch_stands_below_the_request_it_worked_for() -> None:
    own = (span(1, ms=6), span(2, parent=1, start=100, ms=3, service="inference"))
    batch = span(3, trace=2, start=200, ms=2, links=((own[1].trace_id, own[1].span_id),) * 2, service="inference")
    below = span(4, trace=2, parent=3, start=300, name="run")
    rows = lay_out(Trace(own[0].trace_id, own, (batch, below)))
    assert [(row.span.span_id[-1], row.depth, row.is_batch) for row in rows] == [
        ("1", 0, False),
        ("2", 1, False),
        ("3", 2, True),
        ("4", 3, False),
    ]


def test_missing_parents_circles_and_odd_clocks_lose_no_span() -> None:
    spans = (
        span(1),
        span(2, parent=77),
        span(3, parent=4),
        span(4, parent=3),
        span(5, parent=5),
        span(6, parent=1, start=-5_000_000),
    )
    rows = lay_out(Trace(spans[0].trace_id, spans))
    assert sorted(row.span.span_id for row in rows) == [each.span_id for each in spans]
    assert [row.is_orphan for row in rows if row.span.span_id.endswith("2")] == [True]
    assert "clock behind" in render(waterfall(Trace(spans[0].trace_id, spans)))


def test_a_thousand_spans_stay_readable() -> None:
    rng = random.Random(3)
    spans = tuple(
        span(n, parent=rng.randrange(n), start=rng.randrange(-10, 9000), ms=rng.random()) for n in range(1, 1001)
    )
    text = render(waterfall(Trace(spans[0].trace_id, spans)))
    assert max(map(len, text.splitlines())) <= 100
    assert f"… and {1000 - MAX_ROWS} more spans" in text


@pytest.mark.parametrize("width", [60, 80, 100, 200])
def test_lines_fit_whatever_the_names_are(width: int) -> None:
    hostile = span(1, name="\x1b[31m[bold]" + "n" * 400, attributes={"treadle.model": "m\n\x07" * 99}, status="error")
    summary = TraceSummary("ab" * 16, "gateway", hostile.name, 1, 10**7, 5, 2, (), "d" * 99, "[red]late")
    text = render(waterfall(Trace(hostile.trace_id, (hostile,)), width=width), width=width)
    table = render(slow_table([summary]), width=width)
    assert max(map(len, (text + table).splitlines())) <= width
    assert "\x1b" not in text + table
    assert "✗" in text


def test_an_empty_trace_has_a_heading() -> None:
    assert "0 spans" in render(waterfall(Trace("ab" * 16, ())))


@pytest.mark.parametrize(
    ("nanos", "text"),
    [(0, "0 µs"), (812_000, "812 µs"), (4_310_000, "4.31 ms"), (999_999, "1 ms"), (12_300_000_000, "12.3 s")],
)
def test_durations_read_at_a_glance(nanos: int, text: str) -> None:
    assert duration_text(nanos) == text
