"""A trace as a waterfall, and a list of slow traces, for a terminal.

`lay_out` orders the spans; `waterfall` and `slow_table` are rich renderables. `render` prints them without colour.
"""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from treadle.observability.tracestore.spans import SpanRecord, Trace, TraceSummary, Value

if TYPE_CHECKING:
    from rich.console import Group, RenderableType
    from rich.table import Table
    from rich.text import Text

MAX_ROWS = 200
"""The maximum number of lines of a waterfall."""

_MAX_INDENT = 8
_SHOWN_ATTRIBUTES = (
    ("treadle.deployment", "deployment "), ("treadle.rows", "rows: "),
    ("treadle.batch.size", "batch of "), ("treadle.batch.queue_ms", "queued ms: "), ("treadle.served_by", "by "),
    ("treadle.degraded_reason", "degraded: "), ("rpc.status_code", ""), ("error.type", ""),
)  # fmt: skip
"""Attributes shown in the note of a span, with the text before their value."""
_OMITTED_VALUES = ("OK", "")


@dataclass(frozen=True, slots=True)
class WaterfallRow:
    """A line of the waterfall."""

    span: SpanRecord
    depth: int
    """The number of levels below a root."""
    offset_nanos: int
    """Time after the start of the trace; negative if the clock of the service is behind."""
    is_batch: bool = False
    """Whether the span is a batch of several requests, shown below a span that it links."""
    is_orphan: bool = False
    """Whether its parent is not stored."""


def lay_out(trace: Trace) -> list[WaterfallRow]:
    """The lines of a trace: each span once, parents before children, siblings by start, batches below linked spans.

    A span whose parent is missing, or is part of a cycle, is a root.
    """
    own = {span.span_id: span for span in trace.spans}
    everything = {**own, **{span.span_id: span for span in trace.linked if span.span_id not in own}}
    children: dict[str, list[tuple[SpanRecord, bool]]] = {}
    roots: list[SpanRecord] = []
    for span in sorted(everything.values(), key=lambda span: span.start_nanos):
        parent, is_batch = _find_parent(span, own, everything)
        if parent:
            children.setdefault(parent, []).append((span, is_batch))
        else:
            roots.append(span)
    start = _start_of(trace)
    rows: list[WaterfallRow] = []
    seen: set[str] = set()
    cyclic = list(everything.values())  # spans in cycles are reached from no root
    for root in [*roots, *cyclic]:
        stack = [(root, 0, False)]
        while stack:
            span, depth, is_batch = stack.pop()
            if span.span_id in seen:
                continue
            seen.add(span.span_id)
            orphan = depth == 0 and bool(span.parent_id)
            rows.append(WaterfallRow(span, depth, span.start_nanos - start, is_batch, orphan))
            stack.extend((child, depth + 1, batch) for child, batch in reversed(children.get(span.span_id, [])))
    return rows


def _find_parent(
    span: SpanRecord, own: Mapping[str, SpanRecord], everything: Mapping[str, SpanRecord]
) -> tuple[str, bool]:
    """The id of the span above `span` ("" for a root), and whether `span` is shown as its batch."""
    if span.span_id not in own or not span.parent_id:
        linked = next((target for _, target in span.links if target in own and target != span.span_id), "")
        if linked:
            return linked, True
    known = span.parent_id in everything and span.parent_id != span.span_id
    return (span.parent_id, False) if known else ("", False)


def _start_of(trace: Trace) -> int:
    roots = [span.start_nanos for span in trace.spans if not span.parent_id and not span.links]
    return min(roots or [span.start_nanos for span in trace.spans] or [0])


def _duration_of(trace: Trace) -> int:
    """Duration up to the end of the last span of the trace itself; later batches, such as records, do not extend it."""
    start = _start_of(trace)
    return max((span.start_nanos + span.duration_nanos - start for span in trace.spans), default=0)


def waterfall(trace: Trace, *, width: int = 100) -> "Group":
    """The trace as lines of `width` columns: service, name, start, duration and status of each span."""
    from rich.console import Group
    from rich.text import Text

    rows = lay_out(trace)
    total = _duration_of(trace)
    names = min(max(20, width * 45 // 100), 70)
    bar = max(10, width - names - 22)
    lines = [_heading(trace, total), Text()]
    for row in rows[:MAX_ROWS]:
        lines.append(_line(row, total, names, bar))
        note = _note(row, width)
        if note is not None:
            lines.append(note)
    if len(rows) > MAX_ROWS:
        lines.append(Text(f"… and {len(rows) - MAX_ROWS} more spans", style="dim"))
    return Group(*lines)


def _heading(trace: Trace, total: int) -> "Text":
    from rich.text import Text

    services = len({span.service for span in trace.spans})
    errors = sum(span.status == "error" for span in trace.spans)
    text = Text.assemble(("trace ", "dim"), (trace.trace_id, "bold"), f"  {duration_text(total)}")
    text.append(f"  {_plural(len(trace.spans), 'span')} in {_plural(services, 'service')}", style="dim")
    if errors:
        text.append(f"  {_plural(errors, 'error')}", style="bold red")
    return text


def _line(row: WaterfallRow, total: int, names: int, bar: int) -> "Text":
    from rich.text import Text

    span = row.span
    colour = _colour(row)
    label = Text("  " * min(row.depth, _MAX_INDENT), no_wrap=True)
    label.append("⧉ " if row.is_batch else "┄ " if row.is_orphan else "")
    label.append(f"{span.service} ", style=f"bold {colour}")
    label.append(_short_name(span.name) + (" →" if span.kind == "client" else ""))
    label.truncate(names - 1, overflow="ellipsis", pad=True)
    line = Text.assemble(label, " ", no_wrap=True)
    line.append(_bar(row, total, bar), style=colour)
    sign = "-" if row.offset_nanos < 0 else "+"
    line.append(f" {sign + duration_text(abs(row.offset_nanos)):>9}", style="dim")
    line.append(f" {duration_text(span.duration_nanos):>8}")
    if span.status == "error":
        line.append(" ✗", style="bold red")
    return line


def _bar(row: WaterfallRow, total: int, width: int) -> str:
    """A bar of `width` cells that shows start and duration of a span, at least one cell; › means after the end."""
    if row.offset_nanos >= total > 0:
        return "·" * (width - 1) + "›"
    scale = width / total if total > 0 else 0.0
    first = min(max(0, int(row.offset_nanos * scale)), width - 1)
    last = min(max(first + 1, round((row.offset_nanos + row.span.duration_nanos) * scale)), width)
    full = "▏" if last - first == 1 and row.span.duration_nanos * scale < 0.5 else "━" * (last - first)
    return "·" * first + full + "·" * (width - first - len(full))


def _note(row: WaterfallRow, width: int) -> "Text | None":
    from rich.text import Text

    attributes = row.span.attributes
    parts = []
    if "treadle.model" in attributes:
        parts.append(f"{attributes['treadle.model']}/{attributes.get('treadle.version', '?')}")
    for key, before in _SHOWN_ATTRIBUTES:
        if str(attributes.get(key, "")) not in _OMITTED_VALUES:
            parts.append(f"{before}{_number(attributes[key])}")
    if row.is_batch:
        parts.append(f"for {_plural(len(row.span.links), 'request')}")
    if row.offset_nanos < 0:
        parts.append("clock behind")
    parts += [f"{event.name} {event.attributes.get('exception.type', '')}".strip() for event in row.span.events[:3]]
    if not parts:
        return None
    indent = "  " * (min(row.depth, _MAX_INDENT) + 1)
    text = Text(indent + "  ".join(parts), style="dim", no_wrap=True)
    text.truncate(width, overflow="ellipsis")
    return text


def _colour(row: WaterfallRow) -> str:
    if row.span.status == "error":
        return "red"
    palette = ("cyan", "green", "magenta", "blue", "yellow")
    return palette[sum(row.span.service.encode()) % len(palette)]


def slow_table(summaries: Sequence[TraceSummary]) -> "Table":
    """A table of slow traces; the first column is the argument of `treadle trace`."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name, right in (("trace", 0), ("took", 1), ("spans", 1), ("what", 0), ("deployment", 0), ("remarks", 0)):
        table.add_column(name, justify="right" if right else "left", no_wrap=name != "remarks")
    for summary in summaries:
        remarks = Text()
        if summary.errors:
            remarks.append(_plural(summary.errors, "error"), style="bold red")
        if summary.degraded_reason:
            remarks.append((" " if remarks else "") + f"degraded: {summary.degraded_reason}", style="yellow")
        table.add_row(
            summary.trace_id[:12],
            duration_text(summary.duration_nanos),
            str(summary.spans),
            Text(f"{summary.service} {_short_name(summary.name)}"),
            Text(summary.deployment),
            remarks,
        )
    return table


def render(renderable: "RenderableType", *, width: int = 100) -> str:
    """A renderable as plain text of at most `width` columns."""
    from rich.console import Console

    buffer = io.StringIO()
    Console(file=buffer, width=width, color_system=None, force_terminal=False).print(renderable)
    return "\n".join(line.rstrip() for line in buffer.getvalue().splitlines()) + "\n"


def duration_text(nanos: int) -> str:
    """A duration with three digits and a unit: "812 µs", "4.31 ms", "12.3 s"."""
    for unit, size in (("s", 1e9), ("ms", 1e6)):
        if nanos >= size * 0.9995:
            return f"{nanos / size:.3g} {unit}" if nanos < size * 999.5 else f"{nanos / size:.0f} {unit}"
    return f"{nanos / 1e3:.0f} µs"


def _short_name(name: str) -> str:
    """`Service/Method` of `package.v1.Service/Method`."""
    service, slash, method = name.lstrip("/").rpartition("/")
    return _printable(f"{service.rpartition('.')[2]}/{method}" if slash else name)


def _number(value: Value) -> str:
    return _printable(f"{value:.3g}" if isinstance(value, float) else str(value))[:60]


def _printable(text: str) -> str:
    """The text without control characters, which callers could send."""
    return "".join(letter if letter.isprintable() else "�" for letter in text)


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
