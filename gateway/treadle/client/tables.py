"""Between what people hold (dicts of lists, arrays, scalars, datetimes) and the columns that travel."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from treadle.core.column import Column
from treadle.core.errors import InvalidInput
from treadle.rpc.codec.columns import decode, encode
from treadle.v1 import types_pb2

Array: TypeAlias = NDArray[Any]
Values: TypeAlias = Column | Array | Sequence[Any] | str | bytes | float | datetime
"""Values of a column: an array, a list (None is a null), one value for one row; a `Column` where its dtype matters."""
Table: TypeAlias = Mapping[str, Values]

_STATUS_PREFIX = "FEATURE_STATUS_"


@dataclass(frozen=True, eq=False)
class Feature:
    """One feature of N rows, with where it came from."""

    name: str
    values: Array | None
    """None when the values were not asked for. What stands in a null row has no meaning: see `statuses`."""
    nulls: NDArray[np.bool_]
    """N; True where there is no value."""
    statuses: tuple[str, ...]
    """N of PRESENT, NULL, MISSING, STALE."""
    ages_seconds: NDArray[np.float64]
    """N; NaN where MISSING."""


def to_columns(table: Table | None) -> list[types_pb2.Column]:
    """The columns of a table; a scalar is one row. InvalidInput names a column that has no type."""
    return [encode(as_column(name, values)) for name, values in (table or {}).items()]


def from_columns(columns: Iterable[types_pb2.Column]) -> dict[str, Array]:
    """Arrays by name. A column with nulls becomes floats with NaN if it is numeric, objects with None otherwise."""
    return {pb.name: _array(decode(pb)) for pb in columns}


def to_feature(pb: types_pb2.FeatureColumn) -> Feature:
    """A feature off the wire."""
    rows = len(pb.statuses)
    column = decode(pb.column) if pb.column.WhichOneof("values") is not None else None
    statuses = tuple(types_pb2.FeatureStatus.Name(status).removeprefix(_STATUS_PREFIX) for status in pb.statuses)
    absent = np.fromiter((status in {"NULL", "MISSING"} for status in statuses), dtype=bool, count=rows)
    return Feature(
        pb.column.name,
        None if column is None else column.values,
        column.nulls if column is not None and column.nulls is not None else absent,
        statuses,
        np.array(pb.ages_seconds, dtype=np.float64),
    )


def to_micros(moments: Any, rows: int) -> list[int]:
    """Microseconds since 1970 (UTC), `rows` of them, from datetimes, datetime64 or integers (one or many)."""
    if not rows and not _is_rows(moments):
        return []
    values = as_column("at", moments if _is_rows(moments) else [moments] * rows).values
    if len(values) != rows:
        raise InvalidInput(f"{len(values)} times for {rows} rows")
    if values.dtype.kind == "M":
        values = values.astype("datetime64[us]").view(np.int64)
    if values.dtype.kind not in "iu":
        raise InvalidInput("times are datetimes, datetime64 or integer microseconds since 1970 (UTC)")
    return [int(value) for value in values]


def to_moment(at: Any) -> int:
    """Microseconds since 1970 (UTC) of one moment; 0, which leaves it to the service, for None."""
    return 0 if at is None else to_micros(at, 1)[0]


def _is_rows(values: Any) -> bool:
    if isinstance(values, str | bytes):
        return False
    return getattr(values, "ndim", 1) > 0 and hasattr(values, "__len__")


def as_column(name: str, values: Any) -> Column:
    """A column from an array, a list or one value. InvalidInput if it has no one type."""
    if isinstance(values, Column):
        return replace(values, name=name)
    rows = values if _is_rows(values) else [values]
    if not isinstance(rows, np.ndarray):
        rows = [_plain(value) for value in rows]
    try:
        column = Column.of(name, rows)
    except (TypeError, ValueError) as error:
        raise _mixed(name) from error
    # numpy makes texts of numbers that stand beside a text.
    if column.dtype == "STRING" and not all(each is None or isinstance(each, str) for each in rows):
        raise _mixed(name)
    return column


def _mixed(name: str) -> InvalidInput:
    return InvalidInput(f"column {name!r} is no list of values of one type")


def _plain(value: Any) -> Any:
    """Datetimes in UTC as numpy's: one without a zone is taken as UTC."""
    if isinstance(value, datetime):
        value = value.astimezone(UTC).replace(tzinfo=None) if value.tzinfo is not None else value
        return np.datetime64(value, "us")
    return np.datetime64(value, "us") if isinstance(value, date) else value


def _array(column: Column) -> Array:
    if column.nulls is None:
        return column.values
    if column.values.dtype.kind in "iufb":
        return column.as_float()
    values = column.values.astype(object)
    values[column.nulls] = None
    return values
