"""Encoding of columns as `treadle.v1.Column` messages, and decoding."""

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from math import prod
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from treadle.core.column import Array, Column
from treadle.core.dtypes import NUMPY_DTYPES, numpy_dtype
from treadle.core.errors import InvalidInput
from treadle.rpc.codec.protobuf_wire import field, varint
from treadle.v1 import types_pb2

_PREFIX = "DATA_TYPE_"
_FROM_PROTO: dict[int, str] = {
    number: name.removeprefix(_PREFIX) for name, number in types_pb2.DataType.items() if number
}
_TO_PROTO = {name.removeprefix(_PREFIX): number for name, number in types_pb2.DataType.items() if number}

_OBJECT_DTYPES = frozenset({"STRING", "BYTES"})
_INTEGER_DTYPES = frozenset({"INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64", "TIMESTAMP"})
VALUE_FIELDS: Mapping[str, tuple[str, frozenset[str]]] = MappingProxyType(
    {
        "bools": ("BOOL", frozenset({"BOOL"})),
        "int64s": ("INT64", _INTEGER_DTYPES),
        "uint64s": ("UINT64", _INTEGER_DTYPES),
        "doubles": ("FP64", frozenset({"FP16", "FP32", "FP64"})),
        "strings": ("STRING", frozenset({"STRING"})),
        "blobs": ("BYTES", frozenset({"BYTES"})),
    }
)
"""The fields of values in the proto: for each its data type when none is given, and the data types that it may hold."""


def to_proto(name: str) -> types_pb2.DataType.ValueType:
    """The number of a data type in the proto's enum; KeyError for an unknown name."""
    return _TO_PROTO[name]


def from_proto(number: int) -> str:
    """The data type of a number of the proto's enum; InvalidInput for UNSPECIFIED and unknown numbers."""
    try:
        return _FROM_PROTO[number]
    except KeyError:
        raise InvalidInput(f"data type {number} is unknown; set one of {', '.join(NUMPY_DTYPES)}") from None


def decode(pb: types_pb2.Column, where: str = "column") -> Column:
    """The column of a message. Raw values are not copied.

    InvalidInput names `where`, the column and what is wrong.
    """
    name = pb.name
    kind = pb.WhichOneof("values")
    if not name:
        raise InvalidInput.at(where, "has no name")
    where = f"{where}[{name}]"
    if kind is None:
        raise InvalidInput.at(where, "has no values; set one of bools, int64s, uint64s, doubles, strings, blobs, raw")
    values, dtype = _raw(pb, where) if kind == "raw" else _typed(pb, kind, where)
    if pb.row_shape:
        values = _reshape(values, tuple(pb.row_shape), where)
    return Column(name, dtype, values, _nulls(pb, len(values), where) if pb.null_rows else None)


def _reshape(flat: Array, row_shape: tuple[int, ...], where: str) -> Array:
    if any(size <= 0 for size in row_shape):
        raise InvalidInput.at(where, f"row_shape {list(row_shape)} must hold sizes over 0")
    per_row = prod(row_shape)
    if len(flat) % per_row:
        raise InvalidInput.at(where, f"{len(flat)} values do not fill rows of {per_row}")
    return flat.reshape(-1, *row_shape)


def _raw(pb: types_pb2.Column, where: str) -> tuple[Array, str]:
    dtype = from_proto(pb.dtype) if pb.dtype else ""
    if dtype in {"", "STRING", "BYTES"}:
        raise InvalidInput.at(where, "raw values need a fixed-width dtype")
    wanted = numpy_dtype(dtype)
    raw = pb.raw  # protobuf copies the bytes at every access
    if len(raw) % wanted.itemsize:
        raise InvalidInput.at(where, f"{len(raw)} raw bytes are no multiple of {wanted.itemsize}, the size of {dtype}")
    if dtype == "BOOL" and raw and np.frombuffer(raw, np.uint8).max() > 1:
        raise InvalidInput.at(where, "raw BOOL bytes must be 0 or 1")
    return np.frombuffer(raw, wanted), dtype


def _typed(pb: types_pb2.Column, kind: str, where: str) -> tuple[Array, str]:
    default, allowed = VALUE_FIELDS[kind]
    dtype = from_proto(pb.dtype) if pb.dtype else default
    if dtype not in allowed:
        raise InvalidInput.at(where, f"{kind} cannot hold {dtype}; use one of {', '.join(sorted(allowed))}")
    items = getattr(pb, kind).values
    if default in _OBJECT_DTYPES:
        array = np.empty(len(items), dtype=object)
        array[:] = items
        return array, dtype
    # `np.fromiter` only iterates a protobuf container; `np.array` inspects it first, which takes longer.
    wide: Array = np.fromiter(items, NUMPY_DTYPES[default], len(items))
    return (wide, dtype) if dtype == default else (_narrow(wide, dtype, where), dtype)


def _narrow(wide: Array, dtype: str, where: str) -> Array:
    """The values as a narrower numpy type, or as timestamps; InvalidInput where one does not fit."""
    wanted = numpy_dtype(dtype)
    if dtype == "TIMESTAMP":
        return wide.astype(np.int64).view(wanted)
    if wanted.kind in "iu" and wide.size:
        limits = np.iinfo(wanted)
        if int(wide.min()) < limits.min or int(wide.max()) > limits.max:
            raise InvalidInput.at(where, f"a value is outside the range of {dtype}")
    with np.errstate(over="ignore"):
        narrow = wide.astype(wanted)
    # An infinite value is rare, so the comparison with the wide values is rarely computed.
    if wanted.kind == "f" and np.isinf(narrow).any() and not np.array_equal(np.isinf(narrow), np.isinf(wide)):
        raise InvalidInput.at(where, f"a value is outside the range of {dtype}")
    return narrow


def _nulls(pb: types_pb2.Column, rows: int, where: str) -> NDArray[np.bool_]:
    positions = np.fromiter(pb.null_rows, np.int64, len(pb.null_rows))
    if positions[-1] >= rows or (positions[1:] <= positions[:-1]).any():
        raise InvalidInput.at(where, f"null_rows must be ascending positions under {rows}")
    nulls = np.zeros(rows, dtype=bool)
    nulls[positions] = True
    return nulls


def decode_all(pbs: Iterable[types_pb2.Column], where: str = "columns", rows: int | None = None) -> dict[str, Column]:
    """The columns of a table by name.

    InvalidInput for a name that appears twice, or for a column whose length is not `rows` (None: that of the first).
    """
    table: dict[str, Column] = {}
    for pb in pbs:
        column = decode(pb, where)
        name, count = column.name, len(column.values)
        if name in table:
            raise InvalidInput.at(f"{where}[{name}]", "is there twice")
        rows = count if rows is None else rows
        if count != rows:
            raise InvalidInput.at(f"{where}[{name}]", f"has {count} rows where the others have {rows}")
        table[name] = column
    return table


def encode(column: Column) -> types_pb2.Column:
    """The message of a column: up to 24 numbers as typed values, which people can read, more as raw bytes."""
    pb = types_pb2.Column(name=column.name, dtype=to_proto(column.dtype))
    values = column.values
    if values.ndim > 1:
        pb.row_shape.extend(values.shape[1:])
    if column.nulls is not None:
        pb.null_rows.extend(np.flatnonzero(column.nulls).tolist())
    if column.dtype in _OBJECT_DTYPES or 0 < values.size <= _MAX_TYPED_VALUES:
        kind = getattr(pb, _FIELD_OF_DTYPE.get(column.dtype) or _FIELD_OF_NUMPY_KIND[values.dtype.kind])
        kind.SetInParent()  # set even without rows: a column without a field of values cannot be decoded
        kind.values.extend(_python_values(column))
    else:
        pb.raw = np.ascontiguousarray(values, NUMPY_DTYPES[column.dtype]).tobytes()
    return pb


def _python_values(column: Column) -> Sequence[Any]:
    """All values, flat, as Python objects."""
    values = column.values
    if column.dtype == "TIMESTAMP":
        values = values.astype("datetime64[us]").view(np.int64)
    elif column.dtype in _OBJECT_DTYPES and column.nulls is not None:
        # Null rows may hold values of any type.
        values = values.copy()
        values[column.nulls] = "" if column.dtype == "STRING" else b""
    return values.ravel().tolist()


_FIELD_OF_DTYPE = {"STRING": "strings", "BYTES": "blobs", "BOOL": "bools", "TIMESTAMP": "int64s"}
_FIELD_OF_NUMPY_KIND = {"f": "doubles", "u": "uint64s", "i": "int64s"}
_MAX_TYPED_VALUES = 24


def encode_column(column: Column) -> bytes:
    """The serialized message of a column, as `encode` makes it.

    Text and floats without nulls are serialized directly, without making the message.
    """
    values = column.values
    if column.nulls is None and values.ndim == 1 and values.size:
        head = _name_and_dtype(column.name, column.dtype)
        if column.dtype == "STRING":
            return head + field(_STRINGS, b"".join([field(1, text.encode()) for text in values.tolist()]))
        if values.dtype.kind == "f":
            if values.size > _MAX_TYPED_VALUES:
                return head + field(_RAW, values.tobytes())
            # Packed doubles have the layout of a numpy array of little-endian doubles.
            return head + field(_DOUBLES, field(1, values.astype("<f8", copy=False).tobytes()))
    return encode(column).SerializeToString()


def encode_each_row(column: Column) -> list[bytes]:
    """For each row, the serialized message of a column with that row alone."""
    values, kind = column.values, column.values.dtype.kind
    if column.nulls is not None or values.ndim != 1 or not (kind in "iuf" or column.dtype == "STRING"):
        return [encode(column.take(slice(row, row + 1))).SerializeToString() for row in range(column.rows)]
    head = _name_and_dtype(column.name, column.dtype)
    if column.dtype == "STRING":
        return [head + field(_STRINGS, field(1, text.encode())) for text in values.tolist()]
    if kind == "f":
        raw = values.astype("<f8", copy=False).tobytes()
        head += field(_DOUBLES, field(1, bytes(8)))[:-8]  # the same length in every row
        return [head + raw[start : start + 8] for start in range(0, len(raw), 8)]
    number, zigzag = (_INT64S, _zigzag) if kind == "i" else (_UINT64S, int)
    return [head + field(number, field(1, varint(zigzag(value)))) for value in values.tolist()]


def _zigzag(value: int) -> int:
    """The zigzag encoding of protobuf's sint64, which stores small numbers of either sign in few bytes."""
    return value << 1 if value >= 0 else (-value << 1) - 1


_INT64S, _UINT64S = (types_pb2.Column.DESCRIPTOR.fields_by_name[each].number for each in ("int64s", "uint64s"))
_RAW, _DOUBLES, _STRINGS = (
    types_pb2.Column.DESCRIPTOR.fields_by_name[each].number for each in ("raw", "doubles", "strings")
)


@lru_cache(maxsize=4096)
def _name_and_dtype(name: str, dtype: str) -> bytes:
    return types_pb2.Column(name=name, dtype=to_proto(dtype)).SerializeToString()


def encode_all(columns: Iterable[Column]) -> list[types_pb2.Column]:
    """The messages of several columns."""
    return [encode(column) for column in columns]
