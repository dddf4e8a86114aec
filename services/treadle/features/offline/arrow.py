"""Conversion between columns and Arrow arrays."""

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from treadle.core.column import Column
from treadle.core.dtypes import numpy_dtype
from treadle.core.errors import InvalidInput
from treadle.features.values import column_with_nulls

_ARROW_TYPES = {
    "BOOL": pa.bool_(),
    "INT8": pa.int8(),
    "INT16": pa.int16(),
    "INT32": pa.int32(),
    "INT64": pa.int64(),
    "UINT8": pa.uint8(),
    "UINT16": pa.uint16(),
    "UINT32": pa.uint32(),
    "UINT64": pa.uint64(),
    "FP16": pa.float16(),
    "FP32": pa.float32(),
    "FP64": pa.float64(),
    "STRING": pa.string(),
    "BYTES": pa.binary(),
    "TIMESTAMP": pa.timestamp("us", "UTC"),
}


def from_arrow(name: str, data: Any, dtype: str) -> Column:
    """A column of the given type from an Arrow array. InvalidInput when the conversion would lose information."""
    array = data.combine_chunks() if isinstance(data, pa.ChunkedArray) else data
    array = _decode_dictionary(array)
    if not _is_compatible(array.type, dtype):
        raise InvalidInput(f"column {name!r} is {array.type}, wanted {dtype}")
    if pa.types.is_null(array.type):
        array = pa.nulls(len(array), _ARROW_TYPES[dtype])
    nulls = array.is_null().to_numpy(zero_copy_only=False)
    values = _to_numpy(name, array, dtype)
    return column_with_nulls(name, dtype, values, nulls)


def _decode_dictionary(array: Any) -> Any:
    """The array with dictionary-encoded text decoded."""
    return array.dictionary_decode() if pa.types.is_dictionary(array.type) else array


def _is_compatible(have: Any, dtype: str) -> bool:
    types = pa.types
    if types.is_null(have):
        return True
    if dtype == "BOOL":
        return bool(types.is_boolean(have))
    if dtype == "STRING":
        return bool(types.is_string(have) or types.is_large_string(have) or types.is_string_view(have))
    if dtype == "BYTES":
        return bool(types.is_binary(have) or types.is_large_binary(have) or types.is_binary_view(have))
    if dtype == "TIMESTAMP":
        return bool(types.is_timestamp(have))
    if dtype.startswith("FP"):
        return bool(types.is_floating(have) and have.bit_width <= _ARROW_TYPES[dtype].bit_width)
    return bool(types.is_integer(have))


def _to_numpy(name: str, array: Any, dtype: str) -> Any:
    wanted = numpy_dtype(dtype)
    if wanted.kind == "O":
        values = np.empty(len(array), object)
        values[:] = array.to_pylist()
        return values
    if wanted.kind == "M":
        return timestamp_micros(array).view(wanted)
    filled = (
        pc.fill_null(array, pa.scalar(False if wanted.kind == "b" else 0, array.type)) if array.null_count else array
    )
    try:
        return filled.cast(_ARROW_TYPES[dtype]).to_numpy(zero_copy_only=False)
    except pa.ArrowInvalid:
        raise InvalidInput(f"column {name!r} has values outside the range of {dtype}") from None


def timestamp_micros(array: Any) -> Any:
    """Microseconds since 1970 UTC of an Arrow timestamp array, finer parts truncated; 0 for null."""
    array = array.combine_chunks() if isinstance(array, pa.ChunkedArray) else array
    moments = pa.types.is_timestamp(array.type)
    nanos = moments and array.type.unit == "ns"
    if moments and not nanos:
        array = array.cast(pa.timestamp("us", array.type.tz), safe=False)
    numbers = pc.fill_null(array.cast(pa.int64()), 0).to_numpy(zero_copy_only=False)
    # Arrow truncates towards zero, which before 1970 would give a later moment; `//` rounds down.
    return numbers // 1000 if nanos else numbers


def to_arrow(column: Column) -> Any:
    """The column as an Arrow array."""
    mask = column.nulls
    if column.dtype in {"STRING", "BYTES"}:
        return pa.array(column.values, _ARROW_TYPES[column.dtype], mask=mask)
    if column.dtype == "TIMESTAMP":
        whole = pa.array(column.values.view(np.int64), pa.int64(), mask=mask)
        return whole.cast(_ARROW_TYPES["TIMESTAMP"])
    return pa.array(np.ascontiguousarray(column.values), _ARROW_TYPES[column.dtype], mask=mask)
