"""What people type for rows: `-e tail_number=N14228`, `-c distance:FP32=1400`; or a JSON file of columns."""

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click
import numpy as np

from treadle.rpc.columns import Column, numpy_dtype
from treadle.rpc.errors import InvalidInput

_KEYS = ("entities", "context", "tensors")


def columns_of(cells: Iterable[str]) -> dict[str, Column]:
    """Columns from NAME=VALUE or NAME:DTYPE=VALUE; a name given again adds a row.

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
    return {name: _column(name, rows, dtypes.get(name)) for name, rows in values.items()}


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
    return {name: _column(name, rows, dtype or None) for (name, _, dtype), rows in named}


def _value(text: str, dtype: str) -> Any:
    if dtype == "STRING":
        return text
    if dtype == "TIMESTAMP":
        return text.removesuffix("Z")
    try:
        return json.loads(text)
    except ValueError:
        return text


def _column(name: str, rows: list[Any], dtype: str | None) -> Column:
    try:
        if dtype is None:
            return Column.of(name, rows)
        if dtype == "TIMESTAMP":
            return Column.of(name, np.array(rows, dtype="datetime64[us]"), dtype=dtype)
        numpy_dtype(dtype)
        return Column.of(name, rows, dtype=dtype)
    except KeyError:
        raise InvalidInput(f"{name}: there is no dtype {dtype!r}") from None
    except (TypeError, ValueError):
        raise InvalidInput(f"{name}: the values do not fit {dtype or 'one type'}") from None
