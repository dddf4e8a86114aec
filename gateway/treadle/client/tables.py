"""Conversion between Python tables (dicts of lists, arrays, scalars, datetimes) and column messages."""

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
"""Values of a column: an array, a list (None is null), a scalar for one row, or a `Column` to set the dtype."""
Table: TypeAlias = Mapping[str, Values]

_STATUS_PREFIX = "FEATURE_STATUS_"


@dataclass(frozen=True, eq=False)
class Feature:
    """One feature of N rows, with status and age of each value."""

    name: str
    values: Array | None
    """None unless values were requested. The values of null rows are arbitrary."""
    nulls: NDArray[np.bool_]
    """N; True where the value is null."""
    statuses: tuple[str, ...]
    """N of PRESENT, NULL, MISSING, STALE."""
    ages_seconds: NDArray[np.float64]
    """N; NaN where MISSING."""


def to_columns(table: Table | None) -> list[types_pb2.Column]:
    """The column messages of a table; a scalar is one row. InvalidInput names a column of mixed types."""
    return [encode(as_column(name, values)) for name, values in (table or {}).items()]


def from_columns(columns: Iterable[types_pb2.Column]) -> dict[str, Array]:
    """Arrays by name. A column with nulls becomes floats with NaN if it is numeric, objects with None otherwise."""
    return {pb.name: _to_array(decode(pb)) for pb in columns}


def to_feature(pb: types_pb2.FeatureColumn) -> Feature:
    """The feature of a message."""
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
    if not rows and not _has_rows(moments):
        return []
    values = as_column("at", moments if _has_rows(moments) else [moments] * rows).values
    if len(values) != rows:
        raise InvalidInput(f"{len(values)} times for {rows} rows")
    if values.dtype.kind == "M":
        values = values.astype("datetime64[us]").view(np.int64)
    if values.dtype.kind not in "iu":
        raise InvalidInput("times are datetimes, datetime64 or integer microseconds since 1970 (UTC)")
    return [int(value) for value in values]


def to_optional_micros(at: Any) -> int:
    """Microseconds since 1970 (UTC) of one moment; None gives 0, for which services use their clock."""
    return 0 if at is None else to_micros(at, 1)[0]


def _has_rows(values: Any) -> bool:
    if isinstance(values, str | bytes):
        return False
    return getattr(values, "ndim", 1) > 0 and hasattr(values, "__len__")


def as_column(name: str, values: Any) -> Column:
    """A column from an array, a list or a scalar. InvalidInput if the values have mixed types."""
    if isinstance(values, Column):
        return replace(values, name=name)
    rows = values if _has_rows(values) else [values]
    if not isinstance(rows, np.ndarray):
        rows = [_to_numpy_scalar(value) for value in rows]
    try:
        column = Column.of(name, rows)
    except (TypeError, ValueError) as error:
        raise _mixed_types_error(name) from error
    # numpy converts the numbers of a list that also contains text to text.
    if column.dtype == "STRING" and not all(each is None or isinstance(each, str) for each in rows):
        raise _mixed_types_error(name)
    return column


def _mixed_types_error(name: str) -> InvalidInput:
    return InvalidInput(f"column {name!r} is no list of values of one type")


def _to_numpy_scalar(value: Any) -> Any:
    """Dates and datetimes as UTC datetime64; a datetime without a zone is taken as UTC."""
    if isinstance(value, datetime):
        value = value.astimezone(UTC).replace(tzinfo=None) if value.tzinfo is not None else value
        return np.datetime64(value, "us")
    return np.datetime64(value, "us") if isinstance(value, date) else value


def _to_array(column: Column) -> Array:
    if column.nulls is None:
        return column.values
    if column.values.dtype.kind in "iufb":
        return column.as_float()
    values = column.values.astype(object)
    values[column.nulls] = None
    return values
