"""Calls of request-time transforms: argument conversion and validation of results, shared by training and serving.

The age of an output is that of its oldest input (MISSING inputs have no age; NaN when all are MISSING). Its status is
NULL where the function returned null, else STALE where an input is STALE, else PRESENT.
"""

from collections.abc import Mapping, Sequence
from functools import reduce
from typing import Any

import numpy as np
from numpy.typing import NDArray

from treadle.core.column import Column
from treadle.core.dtypes import numpy_dtype
from treadle.core.errors import FailedPrecondition, TreadleError
from treadle.core.hints import did_you_mean
from treadle.features.definitions import Field, Transform
from treadle.features.values import FeatureResult, FeatureStatus, column_with_nulls

Array = NDArray[Any]


def run_transforms(
    transforms: Sequence[Transform], inputs: Mapping[str, FeatureResult], rows: int
) -> dict[str, FeatureResult]:
    """The outputs of all transforms by name, `rows` values each. FailedPrecondition names the function that failed."""
    made: dict[str, FeatureResult] = {}
    for transform in transforms:
        taken = [inputs[name] for name in transform.inputs]
        given = {name: transform_input(each.column) for name, each in zip(transform.inputs, taken, strict=True)}
        returned = _check_keys(transform, _call(transform, given))
        ages = reduce(np.fmax, [each.ages for each in taken])
        stale = reduce(np.logical_or, [each.statuses == FeatureStatus.STALE for each in taken])
        fresh = np.where(stale, FeatureStatus.STALE, FeatureStatus.PRESENT)
        for field in transform.outputs:
            column = _output_column(transform, field, returned[field.name], rows)
            nulls = np.zeros(rows, bool) if column.nulls is None else column.nulls
            made[field.name] = FeatureResult(column, np.where(nulls, FeatureStatus.NULL, fresh).astype(np.uint8), ages)
    return made


def transform_input(column: Column) -> Array:
    """The column as argument of a transform: a read-only array whose type depends on the column's type alone.

    FP types stay (null is NaN), integers and BOOL become float64 (null is NaN), STRING and BYTES are objects
    (null is None), TIMESTAMP is datetime64[us] (null is NaT).
    """
    values = column.values
    if values.dtype.kind in "iub":
        values = values.astype(np.float64)
    if column.nulls is not None:
        values = values.copy()
        values[column.nulls] = None if values.dtype.kind == "O" else "NaT" if values.dtype.kind == "M" else np.nan
    shown = values.view()
    shown.flags.writeable = False
    return shown


def _call(transform: Transform, given: dict[str, Array]) -> Any:
    if transform.call is None:
        raise FailedPrecondition(f"transform {transform.name!r} is not resolved to a function")
    try:
        with np.errstate(all="ignore"):
            return transform.call(given)
    except TreadleError:
        raise
    except Exception as error:
        # The text of the exception may contain values of columns: only its type and location are reported.
        raise _transform_error(transform, f"raised {type(error).__name__}{_error_location(error)}") from error


def _error_location(error: BaseException) -> str:
    """Function and line of the user's code that raised, as " (in …)"; "" when unknown."""
    frames = []
    trace = error.__traceback__
    while trace is not None:
        frames.append(f"{trace.tb_frame.f_code.co_name}, line {trace.tb_lineno}")
        trace = trace.tb_next
    return f" (in {frames[1]})" if len(frames) > 1 else ""


def _check_keys(transform: Transform, returned: Any) -> Mapping[str, Any]:
    wanted = [each.name for each in transform.outputs]
    if not isinstance(returned, Mapping):
        raise _transform_error(transform, f"returned {type(returned).__name__}, wanted a dict with {', '.join(wanted)}")
    for name in wanted:
        if name not in returned:
            raise _transform_error(transform, f"did not return {name!r}")
    for name in returned:
        if name not in wanted:
            raise _transform_error(
                transform, f"returned {str(name)[:80]!r}, which it does not declare{did_you_mean(str(name), wanted)}"
            )
    return returned


def _output_column(transform: Transform, field: Field, value: Any, rows: int) -> Column:
    array = np.ma.getdata(value) if isinstance(value, np.ma.MaskedArray) else value
    what = f"output {field.name!r}"
    if not isinstance(array, np.ndarray):
        raise _transform_error(transform, f"{what} is a {type(array).__name__}, wanted a numpy array")
    if array.shape != (rows,):
        raise _transform_error(transform, f"{what} has the shape {array.shape}, wanted ({rows},)")
    nulls = np.ma.getmaskarray(value) if isinstance(value, np.ma.MaskedArray) else np.zeros(rows, bool)
    values, own_nulls = _cast_output(transform, field, array, nulls)
    return column_with_nulls(field.name, field.dtype, values, nulls | own_nulls)


def _cast_output(
    transform: Transform, field: Field, array: Array, masked: NDArray[np.bool_]
) -> tuple[Array, NDArray[np.bool_]]:
    """The array cast to the declared type, and where its values are null (NaN, NaT, None)."""
    wanted = numpy_dtype(field.dtype)
    if wanted.kind == "O":
        return _cast_text_output(transform, field, array, masked)
    widens = wanted.kind == array.dtype.kind == "M" or np.can_cast(array.dtype, wanted, "same_kind")
    if array.dtype.kind == "O" or not widens or (wanted.kind == "f" and array.dtype.kind == "b"):
        raise _transform_error(transform, f"output {field.name!r} is {array.dtype}, wanted {wanted} ({field.dtype})")
    values = array.astype(wanted)
    if wanted.kind in "iu" and not np.array_equal(values[~masked], array[~masked]):
        raise _transform_error(transform, f"output {field.name!r} has values outside the range of {field.dtype}")
    if wanted.kind == "f":
        return values, np.isnan(values)
    return values, np.isnat(values) if wanted.kind == "M" else np.zeros(len(values), bool)


def _cast_text_output(
    transform: Transform, field: Field, array: Array, masked: NDArray[np.bool_]
) -> tuple[Array, NDArray[np.bool_]]:
    kind = str if field.dtype == "STRING" else bytes
    items = array.tolist()
    nulls = np.fromiter((each is None for each in items), bool, len(items))
    if not all(isinstance(each, kind) for each, null in zip(items, (nulls | masked).tolist(), strict=True) if not null):
        raise _transform_error(
            transform, f"output {field.name!r} is {array.dtype}, wanted {field.dtype} ({kind.__name__} or None)"
        )
    values = np.empty(len(items), object)
    values[:] = items
    return values, nulls


def _transform_error(transform: Transform, what: str) -> FailedPrecondition:
    return FailedPrecondition(f"transform {transform.name!r} ({transform.function}) {what}")
