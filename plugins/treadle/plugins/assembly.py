"""The one rule that turns columns into the tensors of a model's signature, for serving and for evaluation.

Serving assembles batches whose rows come from many independent requests, so rows are refused one by one: for every way
to cut the rows of a batch into requests, a request gets the tensors and the error that it would get alone. Nothing
that is decided about a row depends on the other rows.

What a column's values become in an input:

    column                  input                        values
    ----------------------  ---------------------------  ------------------------------------------------------------
    any dtype               the same dtype               as they are, without a copy
    number or BOOL          FP16, FP32, FP64             cast to the nearest float; an overflow becomes infinite
    number or BOOL          an integer dtype, BOOL       cast where whole and in range (BOOL: 0 or 1)
    STRING                  BYTES                        UTF-8
    BYTES                   STRING                       decoded where they are UTF-8
    TIMESTAMP               INT64, FP64                  microseconds since 1970-01-01 UTC
    anything else                                        refused for all rows: the dtype does not fit
    null, missing, NaN,     floats with `allow_nan`      NaN
    NaT                     any other                    that row is refused

An integer column with nulls that became floats on its way through a data frame is thus the column that it was, and a
column of text that was stored as bytes is text. An input with `columns` takes one value a row of each of them. Any
other input takes rows of its own shape from the column of its name; one value a row also makes a row of shape (1,).

Messages name columns and rows, never values, which may be sensitive.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from treadle.core.column import Array, Column
from treadle.core.dtypes import numpy_dtype
from treadle.core.errors import InvalidInput, TreadleError, Unavailable
from treadle.plugins.tensor_spec import FLOATS, TensorSpec, fits
from treadle.plugins.tensors import Signature

Mask = NDArray[np.bool_]
"""One flag a row, of shape (N,)."""
Source = Literal["request", "features", "dataset", "tensors"]
"""Where values come from: sent by the caller as context or as tensors, looked up, or read from a dataset."""

_EMPTY: Mapping[str, Any] = {"STRING": "", "BYTES": b""}
"""What stands in refused rows; 0 for the other dtypes."""


class CannotAnswer(Unavailable):
    """A version cannot be served with a value that was looked up; the next step of the fallback chain may be."""


class InputColumn(NamedTuple):
    """One column of N rows that feeds inputs."""

    column: Column
    unusable: Mask | None = None
    """Rows without a usable value besides the column's nulls: missing ones, and stale ones under a strict policy."""
    source: Source = "request"


@dataclass(frozen=True, slots=True)
class Refusal:
    """One reason why rows cannot be given to the model."""

    rows: Mask | None
    """The rows, of N; None: all."""
    error: Callable[[int], TreadleError]
    """A new error that names the row of this number: InvalidInput, or CannotAnswer where the value was looked up."""

    def first_row(self, start: int, stop: int) -> int | None:
        """The first refused row of a range, counted from `start`; None if there is none."""
        if self.rows is None:
            return 0
        rows = self.rows[start:stop]
        first = int(rows.argmax())
        return first if rows[first] else None


@dataclass(frozen=True, slots=True)
class ModelInputs:
    """Tensors for N rows, and why some of the rows cannot be given to the model."""

    tensors: Mapping[str, Array]
    """One for each input of the signature, N rows each. Refused rows hold zeros or empty text that mean nothing, so
    that all of it fits the signature unless a refusal is of all rows."""
    refusals: tuple[Refusal, ...] = ()
    """In the order of the signature's columns."""

    def refusal(self, start: int, stop: int) -> TreadleError | None:
        """The error of a request that consists of these rows, one or more, with rows counted from `start`."""
        for refusal in self.refusals:
            row = refusal.first_row(start, stop)
            if row is not None:
                return refusal.error(row)
        return None


def assemble(signature: Signature, columns: Mapping[str, InputColumn], rows: int) -> ModelInputs:
    """The inputs of `rows` rows, 1 or more, out of columns that have as many each. What a signature needs and is not
    there refuses all rows; columns that it does not name are ignored."""
    tensors: dict[str, Array] = {}
    refusals: list[Refusal] = []
    for spec in signature.inputs:
        make = _packed if spec.columns else _single
        tensors[spec.name] = make(spec, columns, rows, refusals)
    return ModelInputs(tensors, tuple(refusals))


def from_tensors(signature: Signature, tensors: Mapping[str, Column]) -> ModelInputs:
    """The caller's tensors as they are. Null and NaN refuse single rows as in `assemble`; an unknown or missing
    tensor, a wrong dtype or shape refuses all rows with the error of `Signature.check_inputs`."""
    made = {name: column.values for name, column in tensors.items()}
    refusals: list[Refusal] = []
    if all(column.nulls is None for column in tensors.values()) and not _structural_error(signature, made):
        return ModelInputs(made)
    for spec in signature.inputs:
        column = tensors.get(spec.name)
        if column is not None and column.dtype == spec.dtype and column.values.ndim:
            made[spec.name] = _values(spec, spec.name, InputColumn(column, source="tensors"), refusals)
    error = _structural_error(signature, made)
    if error is not None:
        return ModelInputs(made, (Refusal(None, lambda _: error.clone()),))
    return ModelInputs(made, tuple(refusals))


def _structural_error(signature: Signature, tensors: Mapping[str, Array]) -> InvalidInput | None:
    try:
        signature.check_inputs(tensors)
    except InvalidInput as error:
        return error
    return None


def _packed(spec: TensorSpec, columns: Mapping[str, InputColumn], rows: int, refusals: list[Refusal]) -> Array:
    """A matrix with one column of the dataset or request in each of its columns."""
    if spec.dtype in FLOATS:
        # Numbers of which none is missing, as they mostly are, need no look at each column.
        found: list[Refusal] = []
        parts = [
            numbers
            if (numbers := _plain_numbers(columns.get(name))) is not None
            else _column(spec, name, columns.get(name), (), rows, found)
            for name in spec.columns
        ]
        matrix = _side_by_side(parts, spec, rows)
        if spec.allow_nan or not np.count_nonzero(np.isnan(matrix)):
            refusals += found
            return matrix
    parts = [_column(spec, name, columns.get(name), (), rows, refusals) for name in spec.columns]
    return _side_by_side(parts, spec, rows)


def _plain_numbers(given: InputColumn | None) -> Array | None:
    """One number a row, none of them null or unusable; None where it is otherwise."""
    if given is None or given.unusable is not None:
        return None
    column = given.column
    values = column.values
    return values if column.nulls is None and values.ndim == 1 and values.dtype.kind in "biuf" else None


def _side_by_side(parts: list[Array], spec: TensorSpec, rows: int) -> Array:
    """Arrays of shape (rows,) as the columns of a matrix. Each is cast on its own: no common dtype is looked for."""
    with np.errstate(over="ignore"):
        flat = np.concatenate(parts, dtype=numpy_dtype(spec.dtype), casting="unsafe")
    return np.ascontiguousarray(flat.reshape(len(parts), rows).T)


def _single(spec: TensorSpec, columns: Mapping[str, InputColumn], rows: int, refusals: list[Refusal]) -> Array:
    """The column of the input's own name."""
    given = columns.get(spec.name)
    row_shape = spec.shape[1:]
    if given is not None and given.column.values.ndim == 1 and row_shape in {(1,), (-1,)}:
        return _column(spec, spec.name, given, (), rows, refusals).reshape(rows, 1)
    return _column(spec, spec.name, given, row_shape, rows, refusals)


def _column(
    spec: TensorSpec,
    name: str,
    given: InputColumn | None,
    row_shape: tuple[int, ...],
    rows: int,
    refusals: list[Refusal],
) -> Array:
    """The values of one column, which must have rows of this shape, in the dtype of the input."""
    if given is None:
        refusals.append(Refusal(None, lambda _: _error("request", name, "is missing; the model needs it")))
    elif not fits(row_shape, given.column.row_shape):
        wanted = f"rows of shape {list(row_shape)}" if row_shape else "one value a row"
        what = f"has rows of shape {list(given.column.row_shape)}; input {spec.name!r} takes {wanted}"
        refusals.append(_of_all(given, name, what))
    else:
        return _values(spec, name, given, refusals)
    return np.zeros((rows, *[abs(size) for size in row_shape]), numpy_dtype(spec.dtype))


def _values(spec: TensorSpec, name: str, given: InputColumn, refusals: list[Refusal]) -> Array:
    """The values in the dtype of the input; NaN where it stands for null, something empty in refused rows."""
    column = given.column
    absent = _absent(given, nan_is_absent=not spec.allow_nan)
    values = column.values
    if absent is not None:
        values = values.copy()
        values[absent] = _EMPTY.get(column.dtype, 0)
    converted = _converted(values, column.dtype, spec.dtype)
    if converted is None:
        what = f"is {column.dtype}, which does not fit {spec.dtype} of input {spec.name!r}"
        refusals.append(_of_all(given, name, what))
        return np.zeros(values.shape, numpy_dtype(spec.dtype))
    made, unfit = converted
    if absent is not None and spec.allow_nan:
        made[absent] = np.nan
    elif absent is not None:
        refusals.append(
            _of_rows(absent, given, name, "has no usable value", f", and input {spec.name!r} of the model needs one")
        )
    if unfit is not None:
        refusals.append(
            _of_rows(unfit, given, name, "has a value", f" that {spec.dtype} of input {spec.name!r} cannot hold")
        )
    return made


def _absent(given: InputColumn, *, nan_is_absent: bool) -> Mask | None:
    """Rows that are null, unusable or NaT, and those with NaN if that counts; None where there is none."""
    column, absent = given.column, given.unusable
    if column.nulls is not None:
        absent = column.nulls if absent is None else absent | column.nulls
    kind = column.values.dtype.kind
    if kind == "M" or (kind == "f" and nan_is_absent):
        nan = np.isnan(column.values)
        if np.count_nonzero(nan):
            nan = _any_in_row(nan)
            absent = nan if absent is None else absent | nan
    return absent if absent is not None and np.count_nonzero(absent) else None


def _converted(values: Array, dtype: str, wanted: str) -> tuple[Array, Mask | None] | None:
    """The values in the wanted dtype, and the rows that it cannot hold; None where the dtypes do not go together."""
    target = numpy_dtype(wanted)
    if dtype == wanted:
        return values, None
    if dtype in _EMPTY and wanted in _EMPTY:
        return _recoded(values, wanted)
    if dtype == "TIMESTAMP" and wanted in {"INT64", "FP64"}:
        return values.astype("datetime64[us]").view(np.int64).astype(target), None
    if values.dtype.kind not in "biuf" or target.kind not in "biuf":
        return None
    if target.kind == "f" or np.can_cast(values.dtype, target):
        with np.errstate(over="ignore"):
            return values.astype(target), None
    held = _held(values, target)
    if held.all():
        return values.astype(target), None
    return np.where(held, values, 0).astype(target), _any_in_row(~held)


def _held(values: Array, target: np.dtype[Any]) -> NDArray[np.bool_]:
    """Where numbers are whole and in the range of BOOL or of an integer dtype; of the shape of `values`."""
    lowest, highest = (0, 1) if target.kind == "b" else (np.iinfo(target).min, np.iinfo(target).max)
    if values.dtype.kind == "f":
        wide = values.astype(np.float64)  # holds both limits exactly: powers of two
        return np.equal(wide, np.trunc(wide)) & (wide >= lowest) & (wide < float(highest + 1))
    own = np.iinfo(values.dtype)
    return np.greater_equal(values, max(lowest, own.min)) & np.less_equal(values, min(highest, own.max))


def _recoded(values: Array, wanted: str) -> tuple[Array, Mask | None]:
    """Text as UTF-8, or UTF-8 as text; empty where it is neither."""
    recode = _encoded if wanted == "BYTES" else _decoded
    items = [recode(value) for value in values.flat]
    unfit = np.fromiter((item is None for item in items), np.bool_, len(items))
    made: Array = np.empty(len(items), dtype=object)
    made[:] = items
    made[unfit] = _EMPTY[wanted]
    made = made.reshape(values.shape)
    return made, _any_in_row(unfit.reshape(values.shape)) if unfit.any() else None


def _encoded(text: str) -> bytes | None:
    try:
        return text.encode()
    except UnicodeEncodeError:  # a lone surrogate, which JSON can spell
        return None


def _decoded(data: bytes) -> str | None:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return None


def _any_in_row(flags: NDArray[np.bool_]) -> Mask:
    return flags if flags.ndim == 1 else np.logical_or.reduce(flags.reshape(len(flags), -1), axis=1)


def _of_all(given: InputColumn, name: str, what: str) -> Refusal:
    return Refusal(None, lambda _: _error(given.source, name, what))


def _of_rows(rows: Mask, given: InputColumn, name: str, what: str, then: str) -> Refusal:
    return Refusal(rows, lambda row: _error(given.source, name, f"{what} in row {row}{then}"))


def _error(source: Source, name: str, what: str) -> TreadleError:
    match source:
        case "request":
            return InvalidInput.at(f"context[{name}]", what)
        case "features":
            return CannotAnswer(f"features: {name} {what}")
        case "dataset":
            return InvalidInput.at(f"dataset[{name}]", what)
        case "tensors":
            return InvalidInput.at(f"tensors[{name}]", what)
