"""The append-only history of changes. `Transaction.record` adds events."""

from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy import Connection

from treadle.registry import paging, schema
from treadle.registry.paging import Page


@dataclass(frozen=True, slots=True)
class HistoryEvent:
    """One recorded change."""

    sequence: int
    at_micros: int
    actor: str
    action: str
    subject: str
    reason: str
    details_json: str


def list_events(connection: Connection, subject_prefix: str, page_size: int, page_token: str) -> Page[HistoryEvent]:
    """Events whose subject begins with the prefix, newest first. A page may end early to bound its size in bytes."""
    scope = f"history:{subject_prefix}"
    size, before = paging.page_size(page_size), paging.decode_token(scope, page_token, int)
    table = schema.history
    query = sa.select(table).order_by(table.c.sequence.desc()).limit(size + 1)
    if subject_prefix:  # not LIKE: it ignores case on SQLite
        query = query.where(sa.func.substr(table.c.subject, 1, len(subject_prefix)) == subject_prefix)
    if before is not None:
        query = query.where(table.c.sequence < before)
    found = (HistoryEvent(*row) for row in connection.execute(query))
    return Page(*paging.take_page(scope, found, size, lambda event: event.sequence, _text_bytes))


def _text_bytes(event: HistoryEvent) -> int:
    return paging.text_bytes(event.actor, event.subject, event.reason, event.details_json)
