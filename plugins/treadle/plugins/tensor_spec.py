"""What one tensor of a model looks like, and what makes such a description unusable.

Without numpy: the registry, which keeps descriptions and runs nothing, is small without it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Self

from treadle.core.errors import Violation
from treadle.v1 import types_pb2

FLOATS = frozenset({"FP16", "FP32", "FP64"})
_PREFIX = "DATA_TYPE_"
_DTYPES = {number: name.removeprefix(_PREFIX) for name, number in types_pb2.DataType.items() if number}


@dataclass(frozen=True)
class TensorSpec:
    """One input or output: the fields of `treadle.v1.TensorSpec`."""

    name: str
    dtype: str
    """Name of the DataType without its prefix: "FP32", "STRING", …"""
    shape: tuple[int, ...]
    """First axis -1 (rows); the others fixed, or -1 where any size is accepted."""
    columns: tuple[str, ...] = ()
    """Feature names in the order of the last axis, for a tensor that packs one feature a column."""
    units: tuple[str, ...] = ()
    """One for the tensor, or one for each column."""
    allow_nan: bool = False

    @classmethod
    def from_proto(cls, pb: types_pb2.TensorSpec) -> Self:
        """As it is written, right or wrong; a data type that is none becomes ""."""
        dtype = _DTYPES.get(pb.dtype, "")
        return cls(pb.name, dtype, tuple(pb.shape), tuple(pb.columns), tuple(pb.units), pb.allow_nan)

    def to_proto(self) -> types_pb2.TensorSpec:
        """KeyError for a data type that is none."""
        return types_pb2.TensorSpec(
            name=self.name,
            dtype=types_pb2.DataType.Value(_PREFIX + self.dtype),
            shape=self.shape,
            columns=self.columns,
            units=self.units,
            allow_nan=self.allow_nan,
        )


def validate_specs(where: str, specs: Sequence[TensorSpec]) -> Iterator[Violation]:
    """What makes a list of specs unusable; fields are named below `where`. An empty list has no fault."""
    seen: set[str] = set()
    for position, spec in enumerate(specs):
        place = f"{where}[{position}]"
        if not spec.name or spec.name in seen:
            yield Violation(f"{place}.name", "empty or already taken; tensor names are unique")
        seen.add(spec.name)
        if spec.dtype not in _DTYPES.values():
            yield Violation(f"{place}.dtype", f"must be one of {', '.join(_DTYPES.values())}")
        if spec.allow_nan and spec.dtype not in FLOATS:
            yield Violation(f"{place}.allow_nan", f"{spec.dtype or 'a tensor without a type'} has no NaN")
        yield from _validate_shape(place, spec)


def _validate_shape(place: str, spec: TensorSpec) -> Iterator[Violation]:
    if not spec.shape or spec.shape[0] != -1 or any(size < -1 or size == 0 for size in spec.shape):
        yield Violation(
            f"{place}.shape", f"{list(spec.shape)}: the first axis is -1 (rows), the others 1 or more, or -1"
        )
    if len(set(spec.columns)) != len(spec.columns):
        yield Violation(f"{place}.columns", "a column is named twice")
    if spec.columns and (len(spec.shape) != 2 or spec.shape[1] not in (-1, len(spec.columns))):
        yield Violation(f"{place}.columns", f"{len(spec.columns)} columns do not fit the shape {list(spec.shape)}")
    if spec.units and len(spec.units) not in (1, len(spec.columns)):
        yield Violation(f"{place}.units", "give one unit for the tensor, or one for each of its columns")


def fits(wanted: Sequence[int], sizes: Sequence[int]) -> bool:
    """Whether a row of these sizes is what a spec's row shape asks for; -1 takes any size."""
    return len(wanted) == len(sizes) and all(want in (-1, size) for want, size in zip(wanted, sizes, strict=True))
