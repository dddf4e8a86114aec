"""Plain requests: one row by entity keys and context, with nothing special asked. Nearly all online traffic is that."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from treadle.gateway.pipeline.request import Ask
from treadle.rpc.codec.columns import decode_all
from treadle.v1 import types_pb2
from treadle.v1.prediction_pb2 import PredictRequest


class Header(NamedTuple):
    """A column without its value."""

    name: str
    kind: str
    """Which of the wire's kinds of values it has."""
    dtype: types_pb2.DataType.ValueType


class Form(NamedTuple):
    """A request without its values: requests of one form are rows of one table."""

    deployment: str
    entities: tuple[Header, ...]
    context: tuple[Header, ...]


class Plain(NamedTuple):
    """A plain request."""

    form: Form
    cells: Sequence[Any]
    """Of each column of the form, entities first, its value."""


def plain(request: PredictRequest) -> Plain | None:
    """None for requests of which something else is wanted, or that are not of one row without nulls.

    Whether it makes sense is not judged here.
    """
    if request.tensors or request.outputs or request.return_features or request.now_micros:
        return None
    cells: list[Any] = []
    entities = _headers(request.entities, cells)
    context = _headers(request.context, cells) if request.context else ()
    return Plain(Form(request.deployment, entities, context), cells) if entities and context is not None else None


def _headers(columns: Sequence[types_pb2.Column], cells: list[Any]) -> tuple[Header, ...] | None:
    """Of each column, whose values are put into `cells`; None if one is not of a single value."""
    headers = []
    for column in columns:
        kind = column.WhichOneof("values")
        if kind is None or kind == "raw" or column.row_shape or column.null_rows:
            return None
        values = getattr(column, kind).values
        if len(values) != 1:
            return None
        cells.append(values[0])
        headers.append(Header(column.name, kind, column.dtype))
    return tuple(headers)


def joined(form: Form, rows: Sequence[Sequence[Any]]) -> Ask:
    """Requests of one form as one of many rows; `rows` holds their cells. InvalidInput where columns can't be read."""
    headers = (*form.entities, *form.context)
    columns = [_column(header, values) for header, values in zip(headers, zip(*rows, strict=True), strict=True)]
    split = len(form.entities)
    return Ask(
        form.deployment, decode_all(columns[:split], "entities"), decode_all(columns[split:], "context", len(rows))
    )


def _column(header: Header, values: Sequence[Any]) -> types_pb2.Column:
    column = types_pb2.Column(name=header.name, dtype=header.dtype)
    getattr(column, header.kind).values.extend(values)
    return column
