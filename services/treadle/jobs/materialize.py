"""Materialization: pushes the newest row of each entity up to a given time from history to the features service."""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from treadle.core.errors import InvalidInput
from treadle.features.definitions import FeatureView
from treadle.features.offline.history import EVENT_TIME, history_sql, open_duckdb, quote_identifier
from treadle.rpc.codec.columns import encode
from treadle.v1 import features_pb2 as pb
from treadle.v1 import features_pb2_grpc

PushProgress = Callable[[int, int], None]
"""Called with the rows sent so far and the total number of rows."""
ROWS_PER_MESSAGE: Final = 5_000
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class MaterializationResult:
    """Number of rows pushed, and of these rows written, and outdated where the store had a newer row."""

    rows: int
    written: int
    outdated: int


async def materialize(
    view: FeatureView,
    stub: "features_pb2_grpc.FeatureServiceAsyncStub",
    *,
    until: datetime | None = None,
    progress: PushProgress | None = None,
) -> MaterializationResult:
    """Pushes the newest row of each entity with an event time up to `until` (None: all history).

    Idempotent. NotFound when the source does not exist; InvalidInput when its columns do not match the view.
    """
    return await push_table(view, stub, await asyncio.to_thread(latest_rows, view, until), progress=progress)


def latest_rows(view: FeatureView, until: datetime | None = None) -> Any:
    """An Arrow table with the newest row of each entity: entity columns, fields, and EVENT_TIME in microseconds."""
    moment = "" if until is None else f" WHERE {EVENT_TIME} <= {to_micros(until)}"
    keys = ", ".join(quote_identifier(each.name) for each in view.entities)
    with open_duckdb() as db:
        history = history_sql(db, view, view.fields)
        return db.sql(
            f"SELECT * FROM ({history}){moment} "  # noqa: S608  # every name is quoted
            f"QUALIFY lead({EVENT_TIME}) OVER (PARTITION BY {keys} ORDER BY {EVENT_TIME}) IS NULL"
        ).to_arrow_table()


async def push_table(
    view: FeatureView,
    stub: "features_pb2_grpc.FeatureServiceAsyncStub",
    rows: Any,
    *,
    progress: PushProgress | None = None,
) -> MaterializationResult:
    """Pushes an Arrow table with the view's columns and EVENT_TIME (`_event_micros`, int64), in its order."""
    if not rows.num_rows:
        return MaterializationResult(0, 0, 0)
    answer = await stub.Push(_messages(view, rows, progress))
    return MaterializationResult(rows.num_rows, answer.rows_written, answer.rows_outdated)


async def _messages(view: FeatureView, rows: Any, progress: PushProgress | None) -> AsyncIterator[pb.PushRequest]:
    for start in range(0, rows.num_rows, ROWS_PER_MESSAGE):
        yield await asyncio.to_thread(_message, view, rows.slice(start, ROWS_PER_MESSAGE))
        if progress is not None:
            progress(min(start + ROWS_PER_MESSAGE, rows.num_rows), rows.num_rows)


def _message(view: FeatureView, rows: Any) -> pb.PushRequest:
    from treadle.features.offline.point_in_time import history_column

    columns = [encode(history_column(each.name, rows[each.name], each.dtype)) for each in view.columns()]
    return pb.PushRequest(view=view.name, columns=columns, event_micros=rows[EVENT_TIME].to_pylist())


def to_micros(moment: datetime) -> int:
    """Microseconds since 1970 UTC, exactly. InvalidInput if `moment` has no time zone."""
    if moment.tzinfo is None:
        raise InvalidInput("the moment needs a time zone, such as 2013-10-01T00:00:00+00:00")
    return (moment - _EPOCH) // timedelta(microseconds=1)
