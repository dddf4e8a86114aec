"""The data types of the contracts by name ("FP32"), and the numpy types that hold them."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np

from treadle.core.errors import InvalidInput

NUMPY_DTYPES: Mapping[str, np.dtype[Any]] = MappingProxyType(
    {
        "BOOL": np.dtype(np.bool_),
        "INT8": np.dtype("<i1"),
        "INT16": np.dtype("<i2"),
        "INT32": np.dtype("<i4"),
        "INT64": np.dtype("<i8"),
        "UINT8": np.dtype("<u1"),
        "UINT16": np.dtype("<u2"),
        "UINT32": np.dtype("<u4"),
        "UINT64": np.dtype("<u8"),
        "FP16": np.dtype("<f2"),
        "FP32": np.dtype("<f4"),
        "FP64": np.dtype("<f8"),
        "STRING": np.dtype(object),
        "BYTES": np.dtype(object),
        "TIMESTAMP": np.dtype("datetime64[us]"),
    }
)
"""Every data type by name, with the numpy type that holds it."""
_NAMES = {dtype: name for name, dtype in NUMPY_DTYPES.items() if dtype.kind != "O"}


def numpy_dtype(name: str) -> np.dtype[Any]:
    """The numpy type of a data type: "FP32" is float32, "STRING" is object. KeyError for an unknown name."""
    return NUMPY_DTYPES[name]


def dtype_name(dtype: np.dtype[Any]) -> str:
    """The data type that a numpy type holds: "FP32" for float32, "STRING" for text.

    InvalidInput for numpy types that no data type stands for (complex numbers, objects).
    """
    if dtype.kind in "UT":
        return "STRING"
    if dtype.kind == "S":
        return "BYTES"
    if dtype.kind == "M":
        return "TIMESTAMP"
    try:
        return _NAMES[dtype.newbyteorder("<")]
    except KeyError:
        raise InvalidInput(f"no data type for numpy's {dtype}; use one of {', '.join(NUMPY_DTYPES)}") from None
