"""Columns of many recorded batches, concatenated while encoded and decoded once.

A batch holds few rows, often one, and decoding a column takes about as long for one row as for thousands: so the
encoded columns of one name are concatenated first.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from treadle.core.column import Array, Column
from treadle.core.dtypes import dtype_name, numpy_dtype
from treadle.core.errors import FailedPrecondition
from treadle.rpc.codec.columns import decode
from treadle.v1 import evaluation_pb2, types_pb2

ColumnSelector = Callable[[evaluation_pb2.PredictionBatch], Iterable[types_pb2.Column]]
"""Picks the columns of a batch that a query reads."""


def entities(batch: evaluation_pb2.PredictionBatch) -> Iterable[types_pb2.Column]:
    """The entity key columns of the requests."""
    return batch.entities


def features(batch: evaluation_pb2.PredictionBatch) -> Iterable[types_pb2.Column]:
    """The feature columns that the model received."""
    return (feature.column for feature in batch.features)


def outputs(batch: evaluation_pb2.PredictionBatch) -> Iterable[types_pb2.Column]:
    """The output columns of the answers."""
    return batch.outputs


def gather(messages: Sequence[bytes], rows: Sequence[int], select: ColumnSelector) -> dict[str, Column]:
    """The selected columns of serialized PredictionBatch messages by name, each with all `sum(rows)` rows.

    Batch k holds `rows[k]` rows, in the order of the messages. The rows of a batch that lacks a column, or that kept
    only its status, are null. FailedPrecondition where a column holds text in one batch and numbers in another.
    """
    builders: dict[str, _ColumnBuilder] = {}
    offset = 0
    for message, count in zip(messages, rows, strict=True):
        for column in select(evaluation_pb2.PredictionBatch.FromString(message)):
            if (builder := builders.get(column.name)) is None:
                builder = builders[column.name] = _ColumnBuilder()
            builder.add(column, offset, count)
        offset += count
    return {name: builder.build(name, offset) for name, builder in sorted(builders.items())}


_Encoding = tuple[str, int, tuple[int, ...]]
"""Field of values, number of the data type, row shape."""


@dataclass(slots=True)
class _SameEncodingRun:
    """The concatenated values of encoded columns that share value field, data type and row shape."""

    rows: int = 0
    values: list[object] = field(default_factory=list)
    null_rows: list[int] = field(default_factory=list)
    spans: list[tuple[int, int]] = field(default_factory=list)
    """Offset and count of the rows of each column, among the rows of all batches."""


class _ColumnBuilder:
    """Builds one column from the encoded columns of its name."""

    def __init__(self) -> None:
        self._runs: dict[_Encoding, _SameEncodingRun] = {}

    def add(self, column: types_pb2.Column, offset: int, rows: int) -> None:
        kind = column.WhichOneof("values")
        if kind is None:
            return
        encoding = (kind, column.dtype, tuple(column.row_shape))
        if (run := self._runs.get(encoding)) is None:
            run = self._runs[encoding] = _SameEncodingRun()
        if kind == "raw":
            run.values.append(column.raw)
        else:
            run.values.extend(getattr(column, kind).values)
        run.null_rows.extend(run.rows + row for row in column.null_rows)
        run.spans.append((offset, rows))
        run.rows += rows

    def build(self, name: str, rows: int) -> Column:
        """The column of all `rows` rows; rows of batches without it are null."""
        pieces = [(_decode(name, encoding, run), _positions(run)) for encoding, run in self._runs.items()]
        nulls = np.ones(rows, dtype=bool)
        if not pieces:
            return Column(name, "FP64", np.zeros(rows), nulls)
        dtype, shape = _common_type(name, [piece for piece, _ in pieces])
        filler = {"STRING": "", "BYTES": b""}.get(dtype)
        values: Array = np.zeros((rows, *shape), dtype=numpy_dtype(dtype))
        if filler is not None:
            values.fill(filler)
        for piece, positions in pieces:
            values[positions] = piece.values
            nulls[positions] = False if piece.nulls is None else piece.nulls
        return Column(name, dtype, values, nulls if nulls.any() else None)


def _decode(name: str, encoding: _Encoding, run: _SameEncodingRun) -> Column:
    kind, dtype, row_shape = encoding
    column = types_pb2.Column(name=name, row_shape=row_shape, null_rows=run.null_rows)
    column.dtype = types_pb2.DataType.ValueType(dtype)
    if kind == "raw":
        column.raw = b"".join(part for part in run.values if isinstance(part, bytes))
    else:
        getattr(column, kind).values.extend(run.values)
        getattr(column, kind).SetInParent()
    return decode(column)


def _positions(run: _SameEncodingRun) -> Array:
    """The positions of the rows of a run among the rows of all batches."""
    offsets, counts = np.array(run.spans, dtype=np.int64).reshape(-1, 2).T
    starts = np.cumsum(counts) - counts
    return np.asarray(np.repeat(offsets - starts, counts) + np.arange(run.rows))


def _common_type(name: str, columns: Sequence[Column]) -> tuple[str, tuple[int, ...]]:
    """The data type and row shape that hold the values of all columns; FailedPrecondition if there is none."""
    dtypes, shapes = {column.dtype for column in columns}, {column.row_shape for column in columns}
    numbers = all(column.values.dtype.kind in "biuf" for column in columns)
    if len(shapes) > 1 or (len(dtypes) > 1 and not numbers):
        raise FailedPrecondition(f'column "{name}" changed its type or shape between recorded answers: ask for fewer')
    if len(dtypes) == 1:
        return dtypes.pop(), shapes.pop()
    return dtype_name(np.result_type(*(column.values.dtype for column in columns))), shapes.pop()
