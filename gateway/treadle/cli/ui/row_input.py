"""Rows given as options (`-e tail_number=N14228`, `-c distance:FP32=1400`) or as a JSON file of columns."""

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


def columns_from_options(options: Iterable[str], part: str = "columns") -> dict[str, Column]:
    """Columns from options NAME=VALUE or NAME:DTYPE=VALUE; an option with the same name adds a row.

    Without a dtype, a value that is valid JSON (a number, true, a list) is parsed, any other value is text. UsageError
    for another form; InvalidInput names `part` and the column.
    """
    values: dict[str, list[Any]] = {}
    dtypes: dict[str, str] = {}
    for option in options:
        name, equals, text = option.partition("=")
        if not equals or not name:
            raise click.UsageError(f"{option!r} is not NAME=VALUE or NAME:DTYPE=VALUE")
        name, _, dtype = name.partition(":")
        values.setdefault(name, []).append(_value(text, dtype))
        if dtype:
            dtypes[name] = dtype
    return {name: _column(part, name, rows, dtypes.get(name)) for name, rows in values.items()}


def read_rows(path: str) -> dict[str, dict[str, Column]]:
    """Columns by part and name from a JSON file, "-" for stdin: {"entities": {…}, "context": {…}} or {"tensors": {…}}.

    Columns are lists under NAME or NAME:DTYPE. InvalidInput names the file and the part.
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
    """A column by the rules of the REST API; also, texts are accepted for TIMESTAMP, and 0 and 1 for BOOL."""
    if dtype is not None:
        _require_dtype(name, dtype)
    if all(item is None for item in rows):
        return Column.of(name, rows, dtype=dtype)
    if dtype == "TIMESTAMP":
        return _timestamps(part, name, rows)
    if dtype == "BOOL":
        rows = [_bool(item) for item in rows]
    return column_from_json(part, name, rows, dtype)


def _require_dtype(name: str, dtype: str) -> None:
    try:
        numpy_dtype(dtype)
    except KeyError:
        raise InvalidInput(f"{name}: there is no dtype {dtype!r}") from None


def _timestamps(part: str, name: str, rows: list[Any]) -> Column:
    nulls = [row is None for row in rows]
    try:
        timestamps = np.array([_without_zone(row) for row in rows], dtype="datetime64[us]")
    except (TypeError, ValueError):
        raise InvalidInput.at(f"{part}[{name}]", "must hold values of TIMESTAMP, in rows of one shape") from None
    return Column.of(name, timestamps, nulls if any(nulls) else None, "TIMESTAMP")


def _without_zone(item: Any) -> Any:
    """A timestamp without its suffix Z, which numpy does not parse: all timestamps are in UTC."""
    if isinstance(item, list):
        return [_without_zone(each) for each in item]
    return item.removesuffix("Z") if isinstance(item, str) else item


def _bool(item: Any) -> Any:
    if isinstance(item, list):
        return [_bool(each) for each in item]
    return bool(item) if item in (0, 1) else item
