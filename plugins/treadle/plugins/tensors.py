"""What goes into a model and what comes out: names, dtypes and shapes, checked on every call.

A signature is checked once when it is built and compiled into a few tuples, because `check_inputs` runs on
the hot path: one row of one input costs about a microsecond. Only when that pass finds something wrong
is the slow, talkative one run.

Messages name tensor, row and what was wanted, never a value: values may be sensitive.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Self

import numpy as np

from treadle.core.dtypes import dtype_name, numpy_dtype
from treadle.core.errors import InvalidInput, Violation
from treadle.plugins.errors import BackendFault
from treadle.plugins.tensor_spec import FLOATS, TensorSpec, fits, validate_specs
from treadle.v1 import types_pb2

Array = np.ndarray[Any, np.dtype[Any]]
"""An array of any dtype and shape."""
Tensors = Mapping[str, Array]
"""Arrays by tensor name; the first axis of each is the rows."""

_OBJECTS: Mapping[str, type] = {"STRING": str, "BYTES": bytes}


class _Check(NamedTuple):
    """A spec compiled for the fast pass."""

    name: str
    dtype: np.dtype[Any]
    rank: int
    row_shape: tuple[int, ...]
    free: bool
    """Whether an axis of a row may have any size."""
    forbid_nan: bool
    element: type | None
    """The type of each element of an object array."""


@dataclass(frozen=True)
class Signature:
    """The inputs and outputs of a model. Raises InvalidInput when they contradict themselves.

    Outputs are empty only while a model is being packaged: it then gives all that it has.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    _inputs: tuple[_Check, ...] = field(init=False, repr=False, compare=False)
    _outputs: tuple[_Check, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        violations = [*validate_specs("inputs", self.inputs), *validate_specs("outputs", self.outputs)]
        if not self.inputs:
            violations.append(Violation("inputs", "empty; a model has at least one"))
        if violations:
            raise InvalidInput("the signature is not usable", violations=violations)
        object.__setattr__(self, "_inputs", tuple(_compile(spec, nan=spec.allow_nan) for spec in self.inputs))
        object.__setattr__(self, "_outputs", tuple(_compile(spec, nan=True) for spec in self.outputs))

    @classmethod
    def from_proto(cls, pb: types_pb2.Signature) -> Self:
        """Raises InvalidInput, one violation for each thing wrong."""
        if not pb.outputs:
            raise InvalidInput("the signature is not usable", [Violation("outputs", "empty; a model has at least one")])
        return cls(tuple(map(TensorSpec.from_proto, pb.inputs)), tuple(map(TensorSpec.from_proto, pb.outputs)))

    def to_proto(self) -> types_pb2.Signature:
        return types_pb2.Signature(
            inputs=[spec.to_proto() for spec in self.inputs], outputs=[spec.to_proto() for spec in self.outputs]
        )

    def columns(self) -> list[str]:
        """Names of the columns that feed the inputs, in order; one that feeds several is named as often."""
        return [name for spec in self.inputs for name in spec.columns or (spec.name,)]

    def check_inputs(self, tensors: Tensors) -> int:
        """Rows of the request, 1 or more. Raises InvalidInput, one violation for each tensor that is wrong."""
        rows = _rows(self._inputs, tensors)
        if rows:
            return rows
        violations = list(_violations(self.inputs, self._inputs, tensors))
        raise InvalidInput("the inputs do not fit the model's signature", violations=violations)

    def check_outputs(self, tensors: Tensors, rows: int) -> None:
        """Raises BackendFault unless exactly the promised tensors are there, with `rows` rows each."""
        for array in tensors.values():
            if type(array) is not np.ndarray and not isinstance(array, np.ndarray):
                strangers = [name for name, each in tensors.items() if not isinstance(each, np.ndarray)]
                raise BackendFault(f"the model broke its signature: {', '.join(strangers)} is no numpy array")
        if _rows(self._outputs, tensors) == rows:
            return
        faults = [f"{v.field}: {v.description}" for v in _violations(self.outputs, self._outputs, tensors)]
        if not faults:
            faults = [f"{rows} rows were asked for, the answer has another number"]
        raise BackendFault(f"the model broke its signature: {'; '.join(faults)}")


def _rows(checks: tuple[_Check, ...], tensors: Tensors) -> int:
    """The fast pass: number of rows, or 0 when anything at all is wrong."""
    if len(tensors) != len(checks):
        return 0
    rows = 0
    for name, dtype, rank, row_shape, free, forbid_nan, element in checks:
        array = tensors.get(name)
        if array is None or array.dtype != dtype or array.ndim != rank:
            return 0
        shape = array.shape
        if shape[1:] != row_shape and not (free and fits(row_shape, shape[1:])):
            return 0
        if rows != shape[0]:
            if rows:
                return 0
            rows = shape[0]
        if forbid_nan and _has_nan(array):
            return 0
        if element is not None and not all(type(value) is element for value in array.flat):
            return 0
    return rows


def _has_nan(array: Array) -> bool:
    # Half the price of isnan().any() on a single row.
    return bool(np.count_nonzero(np.isnan(array)))


def _violations(specs: tuple[TensorSpec, ...], checks: tuple[_Check, ...], tensors: Tensors) -> Iterator[Violation]:
    """The talkative pass: everything that is wrong, in the order of the signature."""
    known = [spec.name for spec in specs]
    for name in tensors:
        if name not in known:
            yield Violation(name, f"unknown tensor; the model has {', '.join(map(repr, known))}")
    rows = next((tensors[name].shape[0] for name in known if name in tensors and tensors[name].ndim), 0)
    for spec, check in zip(specs, checks, strict=True):
        if spec.name not in tensors:
            yield Violation(spec.name, f"missing; {spec.dtype} of shape {list(spec.shape)} is wanted")
            continue
        wrong = _wrong(spec, check, tensors[spec.name], rows)
        if wrong:
            yield Violation(spec.name, wrong)


def _wrong(spec: TensorSpec, check: _Check, array: Array, rows: int) -> str:
    """What is wrong with one tensor; empty if nothing."""
    if array.dtype != check.dtype:
        return f"dtype is {_dtype_text(array)}, {spec.dtype} is wanted"
    if not array.ndim or not fits(check.row_shape, array.shape[1:]):
        return f"shape is {[-1, *array.shape[1:]] if array.ndim else []}, {list(spec.shape)} is wanted"
    if array.shape[0] != rows:
        return f"has {array.shape[0]} rows, the first tensor has {rows}"
    if rows == 0:
        return "has no rows; at least one is wanted"
    if check.forbid_nan and _has_nan(array):
        first = int(np.argwhere(np.isnan(array))[0][0])
        return f"row {first} holds {'NaT' if array.dtype.kind == 'M' else 'NaN'}, which this model does not accept"
    if check.element is not None:
        for position, value in enumerate(array.flat):
            if type(value) is not check.element:
                row = position // max(1, array.size // rows)
                return f"row {row} holds a {type(value).__name__}, {spec.dtype} is wanted"
    return ""


def _compile(spec: TensorSpec, *, nan: bool) -> _Check:
    row_shape = spec.shape[1:]
    forbid_nan = not nan and (spec.dtype in FLOATS or spec.dtype == "TIMESTAMP")  # NaT is NaN's like: isnan finds both
    return _Check(
        spec.name,
        numpy_dtype(spec.dtype),
        len(spec.shape),
        row_shape,
        -1 in row_shape,
        forbid_nan,
        _OBJECTS.get(spec.dtype),
    )


def spec_like(
    name: str,
    array: Array,
    columns: tuple[str, ...] = (),
    units: tuple[str, ...] = (),
    allow_nan: bool = False,
) -> TensorSpec:
    """The spec of tensors that look like `array`, with any number of rows. `allow_nan` holds where there is NaN."""
    if array.ndim == 0:
        raise InvalidInput(f"tensor {name!r} has no rows axis; give an array of shape [rows, …]")
    return TensorSpec(
        name,
        dtype_name(array.dtype) if array.dtype != object else _object_name(name, array),
        (-1, *array.shape[1:]),
        columns,
        units,
        allow_nan and array.dtype.kind == "f",
    )


def _object_name(name: str, array: Array) -> str:
    """STRING or BYTES, by what the array holds."""
    for dtype, element in _OBJECTS.items():
        if all(type(value) is element for value in array.flat):
            return dtype
    raise InvalidInput(f"tensor {name!r} holds neither str alone nor bytes alone")


def _dtype_text(array: Array) -> str:
    return "an object array" if array.dtype == object else str(array.dtype)
