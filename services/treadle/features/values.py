"""Feature values with their statuses and ages, computed here for online and offline alike.

    row not found                      MISSING  value null, age NaN
    found, value null                  NULL     age of the row
    found, older than the view allows  STALE    value kept
    found                              PRESENT

Null rows hold a fixed value (NaN, 0, "", b"", NaT), so that equal features are equal bit for bit.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from treadle.core.column import Column
from treadle.core.dtypes import numpy_dtype
from treadle.features.definitions import Field

Array = NDArray[Any]
MICROS_A_SECOND: Final = 1e6


class FeatureStatus(IntEnum):
    """Numbered as `treadle.v1.FeatureStatus`."""

    PRESENT = 1
    NULL = 2
    MISSING = 3
    STALE = 4


# Plain integers, because access to an enum member takes longer than the arithmetic around it.
_PRESENT, _NULL, _MISSING, _STALE = map(int, FeatureStatus)


@dataclass(frozen=True, slots=True, eq=False)
class FeatureResult:
    """N values of one feature: `statuses` is uint8 of `FeatureStatus`, `ages` is float64 seconds, NaN if MISSING."""

    column: Column
    statuses: NDArray[np.uint8]
    ages: NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class ViewRows:
    """The stored rows of a view for N entities. Rows where `found` is False hold null values."""

    found: NDArray[np.bool_]
    event_micros: NDArray[np.int64]
    values: Sequence[Array]
    """One array for each field, N rows each."""
    nulls: NDArray[np.bool_]
    """Shape (fields, N). True also where absent."""
    absent: NDArray[np.bool_] | None
    """Shape (fields, N). True where no value was ever stored: no row for the entity, or a field newer than its row.
    None: everywhere False."""


def view_features(
    names: Sequence[str], fields: Sequence[Field], rows: ViewRows, now: NDArray[np.int64], limit: int | None
) -> dict[str, FeatureResult]:
    """The features of a view by name, with statuses and ages at the times `now` (N, microseconds).

    `limit` is the freshness limit in microseconds; None: values never become STALE.
    """
    age_micros = now - rows.event_micros
    ages = age_micros / MICROS_A_SECOND
    statuses = np.full(rows.nulls.shape, _PRESENT, np.uint8)
    if limit is not None:
        statuses[:, age_micros > limit] = _STALE
    statuses[rows.nulls] = _NULL
    every_age: Sequence[NDArray[np.float64]] = [ages] * len(fields)
    if rows.absent is not None:
        statuses[rows.absent] = _MISSING
        every_age = np.where(rows.absent, np.nan, ages)  # type: ignore[assignment]  # an array is a sequence of its rows
    some_null: list[bool] = np.asarray(rows.nulls.any(axis=1)).tolist()
    return {
        name: FeatureResult(
            _fill_nulls(name, field.dtype, rows.values[at], rows.nulls[at])
            if some_null[at]
            else Column(name, field.dtype, rows.values[at]),
            statuses[at],
            every_age[at],
        )
        for at, (name, field) in enumerate(zip(names, fields, strict=True))
    }


def context_feature(column: Column) -> FeatureResult:
    """A request-time column as a feature: age 0, NULL where null, else PRESENT."""
    nulls = np.zeros(column.rows, bool) if column.nulls is None else column.nulls
    statuses = np.where(nulls, FeatureStatus.NULL, FeatureStatus.PRESENT).astype(np.uint8)
    return FeatureResult(
        column_with_nulls(column.name, column.dtype, column.values, nulls), statuses, np.zeros(column.rows)
    )


def column_with_nulls(name: str, dtype: str, values: Array, nulls: NDArray[np.bool_]) -> Column:
    """A column with the null value of its type in the rows of `nulls`."""
    return _fill_nulls(name, dtype, values, nulls) if nulls.any() else Column(name, dtype, values)


def _fill_nulls(name: str, dtype: str, values: Array, nulls: NDArray[np.bool_]) -> Column:
    filled = values.copy()
    filled[nulls] = null_filler(dtype)
    return Column(name, dtype, filled, nulls)


def null_filler(dtype: str) -> Any:
    """The value of a null row of this type: NaN, NaT, "", b"", False or 0."""
    if dtype == "STRING":
        return ""
    if dtype == "BYTES":
        return b""
    wanted = numpy_dtype(dtype)
    return np.array("NaT", wanted)[()] if wanted.kind == "M" else wanted.type(np.nan if wanted.kind == "f" else 0)
