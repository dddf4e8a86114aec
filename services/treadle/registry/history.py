"""What happened, newest first. `Transaction.record` adds to it; nothing changes it."""

from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy import Connection

from treadle.registry import paging, schema
from treadle.registry.paging import Page


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened."""

    sequence: int
    at_micros: int
    actor: str
    action: str
    subject: str
    reason: str
    details_json: str


def events(connection: Connection, subject_prefix: str, page_size: int, page_token: str) -> Page[Event]:
    """Events whose subject begins with the prefix, newest first. A page ends early where their texts grow large."""
    scope = f"history:{subject_prefix}"
    size, before = paging.page_size(page_size), paging.after(scope, page_token, int)
    table = schema.history
    query = sa.select(table).order_by(table.c.sequence.desc()).limit(size + 1)
    if subject_prefix:  # not LIKE: it ignores case on SQLite
        query = query.where(sa.func.substr(table.c.subject, 1, len(subject_prefix)) == subject_prefix)
    if before is not None:
        query = query.where(table.c.sequence < before)
    found = (Event(*row) for row in connection.execute(query))
    return Page(*paging.cut(scope, found, size, lambda event: event.sequence, _weight))


def _weight(event: Event) -> int:
    return paging.weigh(event.actor, event.subject, event.reason, event.details_json)
