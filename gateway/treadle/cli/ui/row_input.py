"""What people type for rows: `-e tail_number=N14228`, `-c distance:FP32=1400`; or a JSON file of columns."""

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click
import numpy as np

from treadle.core.column import Column
from treadle.core.dtypes import numpy_dtype
from treadle.core.errors import InvalidInput
from treadle.gateway.api.rest.json_codec import column_from_json

_KEYS = ("entities", "context", "tensors")


def columns_of(cells: Iterable[str], part: str = "columns") -> dict[str, Column]:
    """Columns from NAME=VALUE or NAME:DTYPE=VALUE; a name given again adds a row. Errors name the `part`.

    Without a dtype, a value that reads as JSON (a number, true, a list) is that, anything else is text.
    """
    values: dict[str, list[Any]] = {}
    dtypes: dict[str, str] = {}
    for cell in cells:
        name, equals, text = cell.partition("=")
        if not equals or not name:
            raise click.UsageError(f"{cell!r} is not NAME=VALUE or NAME:DTYPE=VALUE")
        name, _, dtype = name.partition(":")
        values.setdefault(name, []).append(_value(text, dtype))
        if dtype:
            dtypes[name] = dtype
    return {name: _column(part, name, rows, dtypes.get(name)) for name, rows in values.items()}


def read_rows(path: str) -> dict[str, dict[str, Column]]:
    """{"entities": {…}, "context": {…}} or {"tensors": {…}} from a JSON file, "-" for stdin.

    Columns are lists, under NAME or NAME:DTYPE.
    """
    try:
        text = sys.stdin.read() if path == "-" else Path(path).read_text(encoding="utf-8")
        document = json.loads(text)
    except OSError as error:
        raise InvalidInput(f"{path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise InvalidInput(f"{path} is no JSON document: {error}") from None
    if not isinstance(document, dict) or not document or set(document) - set(_KEYS):
        raise InvalidInput(f"{path} must be an object with keys out of {', '.join(_KEYS)}, each an object of columns")
    return {key: _columns(columns, f"{path}: {key}") for key, columns in document.items()}


def _columns(columns: Any, where: str) -> dict[str, Column]:
    if not isinstance(columns, dict) or not all(isinstance(rows, list) for rows in columns.values()):
        raise InvalidInput(f"{where} must be an object of lists, one for each column")
    named = ((name.partition(":"), rows) for name, rows in columns.items())
    return {name: _column(where, name, rows, dtype or None) for (name, _, dtype), rows in named}


def _value(text: str, dtype: str) -> Any:
    if dtype in {"STRING", "TIMESTAMP"}:
        return text
    try:
        return json.loads(text)
    except ValueError:
        return text


def _column(part: str, name: str, rows: list[Any], dtype: str | None) -> Column:
    """By the rules of the REST door, and a little more: texts for moments, 0 and 1 for BOOL."""
    if dtype is not None:
        _require_dtype(name, dtype)
    if all(item is None for item in rows):
        return Column.of(name, rows, dtype=dtype)
    if dtype == "TIMESTAMP":
        return _moments(part, name, rows)
    if dtype == "BOOL":
        rows = [_bool(item) for item in rows]
    return column_from_json(part, name, rows, dtype)


def _require_dtype(name: str, dtype: str) -> None:
    try:
        numpy_dtype(dtype)
    except KeyError:
        raise InvalidInput(f"{name}: there is no dtype {dtype!r}") from None


def _moments(part: str, name: str, rows: list[Any]) -> Column:
    nulls = [row is None for row in rows]
    try:
        moments = np.array([_without_zone(row) for row in rows], dtype="datetime64[us]")
    except (TypeError, ValueError):
        raise InvalidInput.at(f"{part}[{name}]", "must hold values of TIMESTAMP, in rows of one shape") from None
    return Column.of(name, moments, nulls if any(nulls) else None, "TIMESTAMP")


def _without_zone(item: Any) -> Any:
    """Moments are in UTC: numpy takes them without the Z that says so."""
    if isinstance(item, list):
        return [_without_zone(each) for each in item]
    return item.removesuffix("Z") if isinstance(item, str) else item


def _bool(item: Any) -> Any:
    if isinstance(item, list):
        return [_bool(each) for each in item]
    return bool(item) if item in (0, 1) else item
