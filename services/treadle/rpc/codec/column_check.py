"""Checks that encoded columns can be decoded, without decoding them.

The ledger stores columns as they were sent and decodes them at the first query, when the sender can no longer correct
them. So everything that decoding would refuse is refused when the batch is recorded. Decoding the one-row batches of
live traffic instead would take ten times as long.
"""

import math
from collections.abc import Iterable
from itertools import pairwise

import numpy as np

from treadle.core.dtypes import numpy_dtype
from treadle.core.errors import InvalidInput
from treadle.rpc.codec.columns import VALUE_FIELDS, from_proto
from treadle.v1 import types_pb2

_TYPES = {number: from_proto(number) for number in types_pb2.DataType.values() if number}
_DTYPES_OF_FIELD = {
    kind: {number for number, name in _TYPES.items() if name in names} | {0}
    for kind, (_, names) in VALUE_FIELDS.items()
}
"""By field of values: the numbers of the data types that it may hold; 0 is UNSPECIFIED."""
_WIDTHS = {number: numpy_dtype(name).itemsize for number, name in _TYPES.items() if name not in {"STRING", "BYTES"}}


def _value_limits(name: str) -> tuple[float, float]:
    dtype = numpy_dtype(name)
    if dtype.kind == "f":
        largest = float(np.finfo(dtype).max)
        return -largest, largest
    info = np.iinfo(np.int64 if name == "TIMESTAMP" else dtype)
    return int(info.min), int(info.max)


_LIMITS = {
    (kind, number): _value_limits(name)
    for kind, widest in (("int64s", ("INT64", "TIMESTAMP")), ("uint64s", ("UINT64",)), ("doubles", ("FP64",)))
    for number, name in _TYPES.items()
    if name in VALUE_FIELDS[kind][1] and name not in widest
}
"""By field of values and data type: the smallest and largest value, where the field can hold values outside."""


def check_columns(columns: Iterable[types_pb2.Column], where: str, rows: int, *, may_be_empty: bool = False) -> None:
    """Checks that all columns have distinct names, `rows` rows, and values that fit their data types.

    `may_be_empty` allows columns without any values. InvalidInput names `where` and the column.
    """
    names = set()
    for column in columns:
        name = column.name
        if not name or name in names:
            raise InvalidInput.at(f"{where}[{name}]", "is there twice" if name else "has no name")
        names.add(name)
        if error := _error(column, rows, may_be_empty):
            raise InvalidInput.at(f"{where}[{name}]", error)


def _error(column: types_pb2.Column, rows: int, may_be_empty: bool) -> str:
    """The message of the first error in a column; "" for a valid column."""
    kind = column.WhichOneof("values")
    if kind is None:
        return "" if may_be_empty else f"has no values; set one of {', '.join(VALUE_FIELDS)}, raw"
    wanted = rows
    if column.row_shape:
        if min(column.row_shape) <= 0:
            return f"row_shape {list(column.row_shape)} must hold sizes over 0"
        wanted *= math.prod(column.row_shape)
    error = _raw_error(column, wanted) if kind == "raw" else _typed_error(column, kind, wanted)
    if not error and column.null_rows:
        nulls = list(column.null_rows)
        if nulls[-1] >= rows or any(second <= first for first, second in pairwise(nulls)):
            return f"null_rows must be ascending positions under {rows}"
    return error


def _raw_error(column: types_pb2.Column, wanted: int) -> str:
    width = _WIDTHS.get(column.dtype)
    if width is None:
        return "raw values need a fixed-width dtype"
    raw = column.raw  # read once: protobuf copies the bytes at every access
    if len(raw) != wanted * width:
        return f"has {len(raw)} raw bytes where {wanted} values of {width} bytes are wanted"
    if column.dtype == types_pb2.DATA_TYPE_BOOL and raw and np.frombuffer(raw, np.uint8).max() > 1:
        return "raw BOOL bytes must be 0 or 1"
    return ""


def _typed_error(column: types_pb2.Column, kind: str, wanted: int) -> str:
    dtype, values = column.dtype, getattr(column, kind).values
    if dtype not in _DTYPES_OF_FIELD[kind]:
        return f"{kind} cannot hold {_TYPES.get(dtype, dtype)}; use one of {', '.join(sorted(VALUE_FIELDS[kind][1]))}"
    if len(values) != wanted:
        return f"has {len(values)} values where {wanted} are wanted"
    limits = _LIMITS.get((kind, dtype))
    if limits is not None and any(_outside(value, limits) for value in values):
        return f"a value is outside the range of {_TYPES[dtype]}"
    return ""


def _outside(value: float, limits: tuple[float, float]) -> bool:
    """Whether a value is out of range. NaN and infinity are in the range of every float."""
    return (value < limits[0] or value > limits[1]) and not math.isinf(value)
