"""The features of each row of a batch as bytes of a repeated `FeatureColumn` field, made for all rows at once.

Nearly all of such a message is the same in every row: names, types, lengths. So each row is a copy of one template in
which a few places of fixed width differ (status, age, value), and numpy fills those in for all rows together. What has
no fixed width (text, vectors) is encoded row by row and stands behind. Protobuf takes the fields of a message in any
order and joins repeated ones, so the bytes of a row may be put behind those of the message that they belong to.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from treadle.core.dtypes import numpy_dtype
from treadle.gateway.pipeline.feature_batch import FeatureBatch, FeatureValues
from treadle.rpc.codec.columns import encode, to_proto
from treadle.rpc.codec.protobuf_wire import field, tag, varint
from treadle.v1 import types_pb2

_COLUMN, _STATUSES, _AGES = (
    types_pb2.FeatureColumn.DESCRIPTOR.fields_by_name[name].number for name in ("column", "statuses", "ages_seconds")
)
_NAME, _DTYPE, _RAW, _NULL_ROWS = (
    types_pb2.Column.DESCRIPTOR.fields_by_name[name].number for name in ("name", "dtype", "raw", "null_rows")
)
# The list of null rows takes three bytes either way: the tag, then one row, number 0; or a length of nothing that is
# written in two bytes where one would do. Which it is, is the byte behind the tag.
_NOT_NULL, _NULL = 0x80, 0x01


def bare(batch: FeatureBatch, number: int) -> list[bytes]:
    """Of each row: name, status and age of every feature, as field `number`."""
    return batch.once(("bare", number), lambda: _encoded(list(batch.features.values()), number, values=False))


def with_values(batch: FeatureBatch, number: int, hidden: frozenset[str]) -> list[bytes]:
    """Of each row: the same with values, without the features that are `hidden`."""

    def make() -> list[bytes]:
        shown = [feature for name, feature in batch.features.items() if name not in hidden]
        return _encoded(shown, number, values=True)

    return batch.once(("values", number, hidden), make)


def to_message(feature: FeatureValues, *, values: bool = True) -> types_pb2.FeatureColumn:
    """One feature of any number of rows, with its values or (`values=False`) with name, statuses and ages alone."""
    column = encode(feature.column) if values else types_pb2.Column(name=feature.column.name)
    return types_pb2.FeatureColumn(
        column=column, statuses=feature.statuses.tolist(), ages_seconds=feature.ages_seconds.tolist()
    )


def _encoded(features: Sequence[FeatureValues], number: int, *, values: bool) -> list[bytes]:
    if not features:
        return []
    fixed = [each for each in features if not values or _has_fixed_width(each)]
    encoded = _filled_in(fixed, number, values=values) if fixed else [b""] * len(features[0].statuses)
    for each in features:
        if values and not _has_fixed_width(each):
            encoded = [head + field(number, _of_one_row(each, row)) for row, head in enumerate(encoded)]
    return encoded


def _filled_in(features: Sequence[FeatureValues], number: int, *, values: bool) -> list[bytes]:
    kinds = [(each.column.name, each.column.dtype if values else "") for each in features]
    template, record = _template(tuple(kinds), number)
    records = np.frombuffer(bytearray(template * len(features[0].statuses)), record)
    for position, each in enumerate(features):
        records[f"status{position}"] = each.statuses
        records[f"age{position}"] = each.ages_seconds
        if values:
            records[f"value{position}"] = each.column.values
            if each.column.nulls is not None:
                records[f"null{position}"] = np.where(each.column.nulls, _NULL, _NOT_NULL)
    raw, size = records.tobytes(), len(template)
    return [raw[start : start + size] for start in range(0, len(raw), size)]


def _has_fixed_width(feature: FeatureValues) -> bool:
    return feature.column.values.dtype != object and not feature.column.row_shape


def _of_one_row(feature: FeatureValues, row: int) -> bytes:
    return to_message(feature.take(slice(row, row + 1))).SerializeToString()


@lru_cache(maxsize=256)
def _template(features: tuple[tuple[str, str], ...], number: int) -> tuple[bytes, np.dtype[Any]]:
    """The bytes of one row of features (name, dtype; without value where it is empty), and where its places lie."""
    template = bytearray()
    places: dict[str, tuple[Any, int]] = {}
    for position, (name, dtype) in enumerate(features):
        message, found = _message(name, dtype)
        template += tag(number) + varint(len(message))
        places.update({f"{what}{position}": (kind, len(template) + at) for what, (kind, at) in found.items()})
        template += message
    return bytes(template), np.dtype(
        {
            "names": list(places),
            "formats": [kind for kind, _ in places.values()],
            "offsets": [at for _, at in places.values()],
            "itemsize": len(template),
        }
    )


def _message(name: str, dtype: str) -> tuple[bytes, dict[str, tuple[Any, int]]]:
    """One feature of one row, and where status, age, value and the switch of null lie in it."""
    places: dict[str, tuple[Any, int]] = {}
    column = field(_NAME, name.encode())
    if dtype:
        kind = numpy_dtype(dtype)
        column += varint(_DTYPE << 3) + varint(to_proto(dtype)) + tag(_NULL_ROWS)
        places["null"] = ("u1", len(column))
        column += bytes([_NOT_NULL, 0]) + tag(_RAW) + varint(kind.itemsize)
        places["value"] = (kind, len(column))
        column += bytes(kind.itemsize)
    message = tag(_COLUMN) + varint(len(column))
    places = {what: (kind, at + len(message)) for what, (kind, at) in places.items()}
    message += column + tag(_STATUSES) + varint(1)
    places["status"] = ("u1", len(message))
    message += bytes(1) + tag(_AGES) + varint(8)
    places["age"] = ("<f8", len(message))
    return message + bytes(8), places
