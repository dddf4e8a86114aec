"""One typed column of a table: N rows of one name and data type, with explicit nulls.

Cores of services work on `Column`; servicers decode and encode it with `treadle.rpc.codec`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from treadle.core.dtypes import dtype_name, numpy_dtype
from treadle.core.errors import InvalidInput

Array = NDArray[Any]


@dataclass(frozen=True, slots=True, eq=False)
class Column:
    """N rows of one name and one type.

    `values` has the shape (rows, *row_shape) and the numpy type of `dtype`: STRING and BYTES are object arrays
    of `str` and `bytes`, TIMESTAMP is datetime64[us] in UTC. `nulls` marks null rows with True; None means no nulls.
    The content of `values` in a null row has no meaning.
    """

    name: str
    dtype: str
    values: Array
    nulls: NDArray[np.bool_] | None = None

    @classmethod
    def of(
        cls, name: str, values: ArrayLike | Sequence[Any], nulls: ArrayLike | None = None, dtype: str | None = None
    ) -> Self:
        """A column from a list or array of values.

        `None` among the values, or True in `nulls`, makes a null row. `dtype` is inferred unless given. InvalidInput
        for values of several types, or of a type that no data type holds.
        """
        array, found = _array_of(values, dtype)
        if nulls is not None:
            given = np.asarray(nulls, dtype=bool)
            found = given if found is None else given | found
        named = dtype or _infer_dtype(array, name)
        wanted = numpy_dtype(named)
        return cls(name, named, array if array.dtype == wanted else array.astype(wanted), found)

    @property
    def rows(self) -> int:
        """The number of rows."""
        return len(self.values)

    @property
    def row_shape(self) -> tuple[int, ...]:
        """The shape of one row: () for a scalar."""
        return self.values.shape[1:]

    def take(self, rows: slice | NDArray[np.integer[Any]]) -> "Column":
        """The column with only the given rows, in the given order."""
        return Column(self.name, self.dtype, self.values[rows], None if self.nulls is None else self.nulls[rows])

    def as_float(self, dtype: str = "FP64") -> Array:
        """Values as floats with NaN for null; InvalidInput for STRING and BYTES."""
        if self.values.dtype == object:
            raise InvalidInput(f"column {self.name!r} is {self.dtype}: it has no numeric value")
        values = self.values.astype(numpy_dtype(dtype))
        if self.nulls is not None:
            values[self.nulls] = np.nan
        return values


def _array_of(values: ArrayLike | Sequence[Any], dtype: str | None) -> tuple[Array, NDArray[np.bool_] | None]:
    """The values as an array, and the mask of the rows that were None (None: there are none)."""
    if isinstance(values, np.ndarray) and values.dtype != object:
        return (values.astype(object) if values.dtype.kind in "UST" else values), None
    items = list(values)  # type: ignore[arg-type]  # ArrayLike is wider than what has rows
    nulls = np.fromiter((item is None for item in items), dtype=bool, count=len(items))
    present = [item for item in items if item is not None]
    if present and isinstance(present[0], str | bytes):
        array = np.empty(len(items), dtype=object)
        array[:] = [type(present[0])() if item is None else item for item in items]
    else:
        filler = np.zeros_like(np.asarray(present[0])) if present else 0.0
        array = np.asarray([filler if item is None else item for item in items])
        if not present and dtype in {"STRING", "BYTES"}:
            array = np.full(len(items), "" if dtype == "STRING" else b"", dtype=object)
        elif not items:
            array = array.astype(np.float64)
    return array, nulls if nulls.any() else None


def _infer_dtype(array: Array, name: str) -> str:
    """The data type of an array; InvalidInput, with the name of the column, where its values are of several types."""
    if array.dtype != object:
        return dtype_name(array.dtype)
    first = array.flat[0] if array.size else ""
    if isinstance(first, str | bytes):
        return "STRING" if isinstance(first, str) else "BYTES"
    raise InvalidInput(f"column {name!r} mixes types; give it one type")
