"""The span store in SQLite: spans are written in batches, found by trace, duration and links, and expire.

Rows are numbered in order of arrival, and retention depends on arrival, not on the clocks of the senders. All methods
block on the disk: call them from one worker thread. Another process may read at the same time (WAL).
"""

import json
import sqlite3
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from treadle.observability.tracestore.spans import SpanEvent, SpanRecord, Trace, TraceSummary

_SCHEMA = """
CREATE TABLE IF NOT EXISTS spans (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    trace_id TEXT NOT NULL, span_id TEXT NOT NULL, parent_id TEXT NOT NULL,
    service TEXT NOT NULL, name TEXT NOT NULL, kind TEXT NOT NULL, status TEXT NOT NULL,
    start_nanos INTEGER NOT NULL, duration_nanos INTEGER NOT NULL, received REAL NOT NULL,
    deployment TEXT NOT NULL, listed INTEGER NOT NULL,
    attributes TEXT NOT NULL, events TEXT NOT NULL,
    UNIQUE (trace_id, span_id)
);
CREATE INDEX IF NOT EXISTS spans_by_duration ON spans (duration_nanos) WHERE listed;
CREATE INDEX IF NOT EXISTS spans_by_start ON spans (start_nanos);
CREATE INDEX IF NOT EXISTS spans_by_deployment ON spans (deployment, trace_id) WHERE deployment <> '';
CREATE TABLE IF NOT EXISTS links (
    span INTEGER NOT NULL, linked_trace TEXT NOT NULL, linked_span TEXT NOT NULL,
    PRIMARY KEY (span, linked_trace, linked_span)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS links_by_target ON links (linked_trace);
"""

_SLOWEST = """
SELECT trace_id, service, name, start_nanos, duration_nanos FROM spans AS s
WHERE listed AND start_nanos >= :since
  AND (:service = '' OR service = :service)
  AND NOT EXISTS (SELECT 1 FROM spans AS p WHERE p.trace_id = s.trace_id AND p.span_id = s.parent_id
                  AND (:service = '' OR p.service = :service))
  AND (:deployment = '' OR EXISTS (SELECT 1 FROM spans AS d
                                   WHERE d.deployment = :deployment AND d.trace_id = s.trace_id))
ORDER BY duration_nanos DESC
"""

MAX_TRACE_SPANS = 5_000
"""The maximum number of spans of a returned trace."""
_MAX_BATCHES = 64
_EXPIRE_TO_FRACTION = 0.9  # expire to this fraction of a limit, so that not every insert expires spans


class UnknownTraceError(LookupError):
    """No stored trace has this id or prefix."""


class AmbiguousTraceError(LookupError):
    """Several stored traces begin with this prefix."""


@dataclass(frozen=True)
class Retention:
    """The limits of the store: the oldest spans expire at the first limit that is reached."""

    max_spans: int = 500_000
    max_bytes: int = 512 * 2**20
    """Size of the database file."""
    max_age_seconds: float = 7 * 86_400.0
    """Age since arrival."""


class SpanStore:
    """A store in one file. A damaged file is renamed and replaced, because traces are expendable."""

    def __init__(
        self, path: Path, retention: Retention | None = None, *, clock: Callable[[], float] = time.time
    ) -> None:
        self._retention = retention or Retention()
        self._clock = clock
        try:
            self._db = _open(path)
        except sqlite3.DatabaseError:
            for suffix in ("", "-wal", "-shm"):
                old = path.with_name(path.name + suffix)
                if old.exists():
                    old.replace(old.with_name(old.name + ".damaged"))
            self._db = _open(path)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file. May be called more than once."""
        self._db.close()

    def add(self, spans: Iterable[SpanRecord]) -> int:
        """Stores spans in one transaction and returns the number of new ones: a span sent twice is stored once.

        sqlite3.OperationalError if the disk is full; none of the batch is stored then.
        """
        now, added = self._clock(), 0
        with self._db as db:
            for span in spans:
                cursor = db.execute(
                    "INSERT OR IGNORE INTO spans VALUES (NULL, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                    _to_row(span, now),
                )
                if cursor.rowcount:
                    added += 1
                    links = [(cursor.lastrowid, *link) for link in span.links]
                    db.executemany("INSERT OR IGNORE INTO links VALUES (?, ?, ?)", links)
        return added

    def expire(self) -> int:
        """Deletes the oldest spans over the limits of retention, and returns their number."""
        first, last = self._db.execute("SELECT coalesce(min(id), 1), coalesce(max(id), 0) FROM spans").fetchone()
        count, keep = last - first + 1, self._retention
        cut = first
        if count > keep.max_spans:
            cut = last - int(keep.max_spans * _EXPIRE_TO_FRACTION) + 1
        size = self.size_bytes()
        if size > keep.max_bytes:
            cut = max(cut, last - int(count * _EXPIRE_TO_FRACTION * keep.max_bytes / size) + 1)
        # Arrival times grow with the id, so this reads no more rows than it deletes.
        fresh = self._db.execute(
            "SELECT id FROM spans WHERE received >= ? ORDER BY id LIMIT 1", (self._clock() - keep.max_age_seconds,)
        ).fetchone()
        cut = max(cut, fresh[0] if fresh else last + 1)
        if cut <= first:
            return 0
        with self._db as db:
            gone = db.execute("DELETE FROM spans WHERE id < ?", (cut,)).rowcount
            db.execute("DELETE FROM links WHERE span < ?", (cut,))
        self._db.execute("PRAGMA incremental_vacuum").fetchall()
        return gone

    def size_bytes(self) -> int:
        """Bytes that hold data, without free pages and the write-ahead log."""
        pages, free, size = (
            self._db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "freelist_count", "page_size")
        )
        return int((pages - free) * size)

    def count(self) -> int:
        """The number of stored spans."""
        return int(self._db.execute("SELECT count(*) FROM spans").fetchone()[0])

    def slowest(
        self, *, service: str = "", deployment: str = "", since_nanos: int = 0, limit: int = 20
    ) -> list[TraceSummary]:
        """Traces by the duration of their outermost span (of `service`, if given), longest first.

        Spans that link to others (batches) and long-lived streams are no requests and are left out.
        """
        found: dict[str, tuple[Any, ...]] = {}
        rows = self._db.execute(_SLOWEST, {"service": service, "deployment": deployment, "since": since_nanos})
        with closing(rows):
            for row in rows:  # in the order of the index, so that the other rows are not read
                found.setdefault(row[0], row)
                if len(found) >= limit:
                    break
        return [self._summary(*row) for row in found.values()]

    def trace(self, prefix: str) -> Trace:
        """The trace whose id is, or begins with, `prefix` (lower-case hexadecimal).

        UnknownTraceError, AmbiguousTraceError.
        """
        ids = self._db.execute(
            "SELECT DISTINCT trace_id FROM spans WHERE trace_id >= ? AND trace_id < ? LIMIT 2", (prefix, prefix + "g")
        ).fetchall()
        if not ids:
            raise UnknownTraceError(prefix)
        if len(ids) > 1:
            raise AmbiguousTraceError(prefix)
        trace_id: str = ids[0][0]
        return Trace(trace_id, tuple(self._spans_of(trace_id)), tuple(self._linked_to(trace_id)))

    def _summary(self, trace_id: str, service: str, name: str, start: int, duration: int) -> TraceSummary:
        rows = self._db.execute(
            "SELECT service, status = 'error', deployment, json_extract(attributes, '$.\"treadle.degraded_reason\"')"
            " FROM spans WHERE trace_id = ? LIMIT ?",
            (trace_id, MAX_TRACE_SPANS),
        ).fetchall()
        return TraceSummary(
            trace_id,
            service,
            name,
            start,
            duration,
            spans=len(rows),
            errors=sum(row[1] for row in rows),
            services=tuple(sorted({row[0] for row in rows})),
            deployment=next((row[2] for row in rows if row[2]), ""),
            degraded_reason=next((str(row[3]) for row in rows if row[3]), ""),
        )

    def _spans_of(self, trace_id: str) -> list[SpanRecord]:
        return self._records(
            "SELECT * FROM spans WHERE trace_id = ? ORDER BY start_nanos LIMIT ?", trace_id, MAX_TRACE_SPANS
        )

    def _linked_to(self, trace_id: str) -> list[SpanRecord]:
        """Spans of other traces that link to this trace, with their child spans."""
        heads = self._records(
            "SELECT * FROM spans WHERE id IN (SELECT span FROM links WHERE linked_trace = ?)"
            " AND trace_id <> ? ORDER BY start_nanos LIMIT ?",
            trace_id,
            trace_id,
            _MAX_BATCHES,
        )
        found = {span.span_id: span for span in heads}
        for other in {span.trace_id for span in heads}:
            for span in self._spans_of(other):  # in order of start: parents come before children, clocks permitting
                if span.parent_id in found:
                    found.setdefault(span.span_id, span)
        return sorted(found.values(), key=lambda span: span.start_nanos)

    def _records(self, query: str, *arguments: object) -> list[SpanRecord]:
        rows = self._db.execute(query, arguments).fetchall()
        links = "SELECT linked_trace, linked_span FROM links WHERE span = ?"
        return [_from_row(row, self._db.execute(links, row[:1]).fetchall()) for row in rows]


def _open(path: Path) -> sqlite3.Connection:
    db = sqlite3.connect(path, timeout=5.0, check_same_thread=False)
    try:
        db.execute("PRAGMA auto_vacuum = INCREMENTAL")
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = NORMAL")  # a power cut may lose the last spans, never the file
        db.execute("PRAGMA cache_size = -4096")
        with closing(db.executescript(_SCHEMA)):
            pass
    except BaseException:
        db.close()
        raise
    return db


def _to_row(span: SpanRecord, now: float) -> tuple[object, ...]:
    deployment = span.attributes.get("treadle.deployment", "")
    listed = not span.links and not span.attributes.get("treadle.stream")
    return (
        span.trace_id,
        span.span_id,
        span.parent_id,
        span.service,
        span.name,
        span.kind,
        span.status,
        span.start_nanos,
        span.duration_nanos,
        now,
        str(deployment),
        int(listed),
        _dump(span.attributes),
        _dump([[event.name, event.offset_nanos, event.attributes] for event in span.events]) if span.events else "",
    )


def _from_row(row: Sequence[Any], links: list[tuple[str, str]]) -> SpanRecord:
    _, trace_id, span_id, parent_id, service, name, kind, status, start, duration, _, _, _, attributes, events = row
    return SpanRecord(
        trace_id,
        span_id,
        parent_id,
        service,
        name,
        start,
        duration,
        kind,
        status,
        json.loads(attributes),
        tuple(links),
        tuple(SpanEvent(*event) for event in json.loads(events)) if events else (),
    )


def _dump(value: object) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)
