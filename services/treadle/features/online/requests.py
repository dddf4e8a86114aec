"""Validation of request columns against the definitions. Errors name columns and rows, never values."""

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import numpy as np

from treadle.core.column import Column
from treadle.core.dtypes import numpy_dtype
from treadle.core.errors import InvalidInput, Violation
from treadle.core.hints import did_you_mean
from treadle.features.definitions import Entity, Field


def check_rows(tables: Mapping[str, Mapping[str, Column]], max_rows: int) -> int:
    """The number of rows that all columns share. InvalidInput for no rows, more than `max_rows`, or unequal numbers."""
    rows: int | None = None
    for where, columns in tables.items():
        for column in columns.values():
            rows = column.rows if rows is None else rows
            if column.rows != rows:
                raise _invalid([Violation(f"{where}[{column.name}]", f"has {column.rows} rows, others have {rows}")])
    if not rows:
        raise InvalidInput("the request has no rows; send at least one", [Violation(next(iter(tables)), "no rows")])
    if rows > max_rows:
        what = f"{rows} rows in one message, {max_rows} at most; send them in parts"
        raise InvalidInput(what, [Violation(next(iter(tables)), what)])
    return rows


def coerce_columns(
    given: Mapping[str, Column],
    accepted: Mapping[str, Entity | Field],
    needed: Iterable[str],
    where: str,
    *,
    not_null: Collection[str] = (),
) -> dict[str, Column]:
    """The columns, cast to their defined types. InvalidInput lists every missing, unknown or mistyped column.

    `where` is the request field, for error messages; `not_null` names entity keys, which cannot be null.
    """
    violations = [
        Violation(f"{where}[{name}]", f"is missing; it is {accepted[name].dtype}")
        for name in needed
        if name not in given
    ]
    coerced: dict[str, Column] = {}
    for name, column in given.items():
        wanted = accepted.get(name)
        if wanted is None:
            problem = f"is unknown{did_you_mean(name, accepted)}"
        else:
            problem = _dtype_problem(column, wanted.dtype, name in not_null)
        if problem:
            violations.append(Violation(f"{where}[{name[:80]}]", problem))
        elif wanted is not None:
            coerced[name] = _cast(column, wanted.dtype)
    if violations:
        raise _invalid(violations)
    return coerced


def _dtype_problem(column: Column, wanted: str, keyed: bool) -> str:
    """Why a column cannot be cast to `wanted` without loss; "" if it can."""
    if column.row_shape:
        return f"has rows of the shape {list(column.row_shape)}, wanted scalars"
    if keyed and column.nulls is not None and column.nulls.any():
        return f"row {int(column.nulls.argmax())} is null; entity keys cannot be"
    if column.dtype == wanted:
        return ""
    have, want = column.values.dtype, numpy_dtype(wanted)
    if have.kind in "iu" and want.kind in "iu":
        return _out_of_range(column, wanted, want)
    if have.kind in "iu" and want.kind == "f":
        return _not_representable(column, wanted, want)
    if have.kind == want.kind == "f" and have.itemsize < want.itemsize:
        return ""
    return f"is {column.dtype}, wanted {wanted}"


def _out_of_range(column: Column, wanted: str, dtype: np.dtype[Any]) -> str:
    limits = np.iinfo(dtype)
    if limits.min <= int(column.values.min(initial=0)) and int(column.values.max(initial=0)) <= limits.max:
        return ""
    # Values of null rows are arbitrary, so the rows are checked one by one.
    for row, value in enumerate(column.values.tolist()):
        if not limits.min <= value <= limits.max and not (column.nulls is not None and column.nulls[row]):
            return f"row {row} is outside the range of {wanted}"
    return ""


def _not_representable(column: Column, wanted: str, dtype: np.dtype[Any]) -> str:
    with np.errstate(over="ignore"):
        floats = column.values.astype(dtype)
    for row, (whole, real) in enumerate(zip(column.values.tolist(), floats.tolist(), strict=True)):
        if whole != real and not (column.nulls is not None and column.nulls[row]):
            return f"row {row} is a whole number that {wanted} cannot hold"
    return ""


def _cast(column: Column, wanted: str) -> Column:
    if column.dtype == wanted:
        return column
    return Column(column.name, wanted, column.values.astype(numpy_dtype(wanted)), column.nulls)


def _invalid(violations: list[Violation]) -> InvalidInput:
    return InvalidInput("; ".join(f"{each.field} {each.description}" for each in violations[:8]), violations)
