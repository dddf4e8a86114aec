"""Columns of many recorded batches, put together and decoded at once.

A batch holds few rows, often one, and decoding a column costs the same for one row as for thousands: so the columns
of one name are joined in their wire form first.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from treadle.core.column import Array, Column
from treadle.core.dtypes import dtype_name, numpy_dtype
from treadle.core.errors import FailedPrecondition
from treadle.rpc.codec.columns import decode
from treadle.v1 import evaluation_pb2, types_pb2

Part = Callable[[evaluation_pb2.PredictionBatch], Iterable[types_pb2.Column]]


def entities(batch: evaluation_pb2.PredictionBatch) -> Iterable[types_pb2.Column]:
    """The keys asked for."""
    return batch.entities


def features(batch: evaluation_pb2.PredictionBatch) -> Iterable[types_pb2.Column]:
    """What the model was given."""
    return (feature.column for feature in batch.features)


def outputs(batch: evaluation_pb2.PredictionBatch) -> Iterable[types_pb2.Column]:
    """What was answered."""
    return batch.outputs


def gather(messages: Sequence[bytes], rows: Sequence[int], part: Part) -> dict[str, Column]:
    """The columns of one part of serialized batches by name; batch k holds `rows[k]` of the rows, in this order.

    Where a batch lacks a column, or only its status was kept, its rows are null. FailedPrecondition where a name
    stands for texts in one batch and numbers in another.
    """
    found: dict[str, _Joined] = {}
    offset = 0
    for message, count in zip(messages, rows, strict=True):
        for column in part(evaluation_pb2.PredictionBatch.FromString(message)):
            if (joined := found.get(column.name)) is None:
                joined = found[column.name] = _Joined()
            joined.add(column, offset, count)
        offset += count
    return {name: joined.column(name, offset) for name, joined in sorted(found.items())}


@dataclass(slots=True)
class _Alike:
    """Columns of one wire form, end to end."""

    rows: int = 0
    values: list[object] = field(default_factory=list)
    null_rows: list[int] = field(default_factory=list)
    places: list[tuple[int, int]] = field(default_factory=list)
    """Where the rows of each column stand among all rows: offset and count."""


class _Joined:
    """The columns of one name."""

    def __init__(self) -> None:
        self._alike: dict[tuple[str, int, tuple[int, ...]], _Alike] = {}

    def add(self, column: types_pb2.Column, offset: int, rows: int) -> None:
        kind = column.WhichOneof("values")
        if kind is None:
            return
        form = (kind, column.dtype, tuple(column.row_shape))
        if (alike := self._alike.get(form)) is None:
            alike = self._alike[form] = _Alike()
        if kind == "raw":
            alike.values.append(column.raw)
        else:
            alike.values.extend(getattr(column, kind).values)
        alike.null_rows.extend(alike.rows + row for row in column.null_rows)
        alike.places.append((offset, rows))
        alike.rows += rows

    def column(self, name: str, rows: int) -> Column:
        pieces = [(_decoded(name, form, alike), _places(alike)) for form, alike in self._alike.items()]
        nulls = np.ones(rows, dtype=bool)
        if not pieces:
            return Column(name, "FP64", np.zeros(rows), nulls)
        dtype, shape = _common(name, [piece for piece, _ in pieces])
        filler = {"STRING": "", "BYTES": b""}.get(dtype)
        values: Array = np.zeros((rows, *shape), dtype=numpy_dtype(dtype))
        if filler is not None:
            values.fill(filler)
        for piece, places in pieces:
            values[places] = piece.values
            nulls[places] = False if piece.nulls is None else piece.nulls
        return Column(name, dtype, values, nulls if nulls.any() else None)


def _decoded(name: str, form: tuple[str, int, tuple[int, ...]], alike: _Alike) -> Column:
    kind, dtype, row_shape = form
    column = types_pb2.Column(name=name, row_shape=row_shape, null_rows=alike.null_rows)
    column.dtype = types_pb2.DataType.ValueType(dtype)
    if kind == "raw":
        column.raw = b"".join(part for part in alike.values if isinstance(part, bytes))
    else:
        getattr(column, kind).values.extend(alike.values)
        getattr(column, kind).SetInParent()
    return decode(column)


def _places(alike: _Alike) -> Array:
    offsets, counts = np.array(alike.places, dtype=np.int64).reshape(-1, 2).T
    starts = np.cumsum(counts) - counts
    return np.asarray(np.repeat(offsets - starts, counts) + np.arange(alike.rows))


def _common(name: str, columns: Sequence[Column]) -> tuple[str, tuple[int, ...]]:
    """The type and row shape that hold all pieces."""
    dtypes, shapes = {column.dtype for column in columns}, {column.row_shape for column in columns}
    numbers = all(column.values.dtype.kind in "biuf" for column in columns)
    if len(shapes) > 1 or (len(dtypes) > 1 and not numbers):
        raise FailedPrecondition(f'column "{name}" changed its type or shape between recorded answers: ask for fewer')
    if len(dtypes) == 1:
        return dtypes.pop(), shapes.pop()
    return dtype_name(np.result_type(*(column.values.dtype for column in columns))), shapes.pop()
