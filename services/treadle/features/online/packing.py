"""Packing of a view's row into one stored value: a fixed record with a null bitmap, then the variable-length fields.

    u32 layout │ null bitmap │ fixed-width fields, little-endian, no padding │ (u32 length, bytes) of each STRING/BYTES

The layout number is derived from a hash of the fields, so that a row is never read with other fields than it was
written with. A view whose fields change gets a new layout; stored rows keep theirs. Rows of one layout are packed and
unpacked as one numpy record array, without Python work for each row unless there are variable-length fields.
"""

import hashlib
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from treadle.core.column import Column
from treadle.core.dtypes import numpy_dtype
from treadle.core.errors import DataLoss
from treadle.features.values import ViewRows, null_filler

Array = NDArray[Any]
StoredRow = tuple[int, bytes] | None
_LENGTH: Final = struct.Struct("<I")
_LAYOUT_NUMBER: Final = struct.Struct("<I")
_VARIABLE: Final = frozenset({"STRING", "BYTES"})


@dataclass(frozen=True)
class RowLayout:
    """Names and types of the fields of a packed row, in order."""

    number: int
    fields: tuple[tuple[str, str], ...]
    """(name, dtype)."""

    @classmethod
    def of(cls, fields: Sequence[tuple[str, str]]) -> Self:
        """The layout of `fields`, (name, dtype) each."""
        digest = hashlib.sha256(repr([tuple(each) for each in fields]).encode()).digest()
        return cls(
            _LAYOUT_NUMBER.unpack(digest[: _LAYOUT_NUMBER.size])[0], tuple((name, dtype) for name, dtype in fields)
        )

    @cached_property
    def record(self) -> np.dtype[Any]:
        """The numpy record of the fixed-width part."""
        columns: list[tuple[Any, ...]] = [("_layout", "<u4"), ("_nulls", "u1", (self._bitmap_bytes,))]
        columns += [(name, numpy_dtype(dtype)) for name, dtype in self.fields if dtype not in _VARIABLE]
        return np.dtype(columns)

    @cached_property
    def variable(self) -> tuple[tuple[str, str], ...]:
        """The variable-length fields, in order."""
        return tuple((name, dtype) for name, dtype in self.fields if dtype in _VARIABLE)

    @cached_property
    def positions(self) -> dict[str, int]:
        """Index of each field by name."""
        return {name: at for at, (name, _) in enumerate(self.fields)}

    def has_all(self, fields: Sequence[tuple[str, str]]) -> bool:
        """Whether rows of this layout contain all of `fields`."""
        return all(name in self.positions for name, _ in fields)

    @property
    def _bitmap_bytes(self) -> int:
        return (len(self.fields) + 7) // 8

    def pack(self, columns: Mapping[str, Column]) -> list[bytes]:
        """One packed value for each row. The columns have the fields' names and types."""
        rows = columns[self.fields[0][0]].rows
        record = np.zeros(rows, self.record)
        record["_layout"] = self.number
        nulls = np.zeros((rows, len(self.fields)), bool)
        for position, (name, dtype) in enumerate(self.fields):
            column = columns[name]
            if column.nulls is not None:
                nulls[:, position] = column.nulls
            if dtype not in _VARIABLE:
                record[name] = column.values
                if column.nulls is not None:
                    record[name][column.nulls] = null_filler(dtype)
        record["_nulls"] = np.packbits(nulls, axis=1, bitorder="little")
        raw, size = record.tobytes(), self.record.itemsize
        fixed = [raw[start : start + size] for start in range(0, len(raw), size)]
        if not self.variable:
            return fixed
        tails = zip(*(_encode_variable(columns[name]) for name, _ in self.variable), strict=True)
        return [head + b"".join(tail) for head, tail in zip(fixed, tails, strict=True)]

    def unpack(self, packed: Sequence[bytes]) -> tuple[dict[str, Array], NDArray[np.bool_]]:
        """Values by field, and the nulls with shape (rows, fields). DataLoss when bytes do not fit the layout."""
        size = self.record.itemsize
        heads = packed if not self.variable else [each[:size] for each in packed]
        raw = b"".join(heads)
        if len(raw) != size * len(packed):
            raise self._layout_error()
        record = np.frombuffer(raw, self.record)
        values: dict[str, Array] = {name: record[name] for name, dtype in self.fields if dtype not in _VARIABLE}
        if self.variable:
            try:
                values.update(self._unpack_variable(packed, size))
            except (struct.error, UnicodeDecodeError):
                raise self._layout_error() from None
        bits = np.unpackbits(record["_nulls"], axis=1, count=len(self.fields), bitorder="little")
        return values, bits.view(np.bool_)

    def _layout_error(self) -> DataLoss:
        return DataLoss(f"a stored row does not fit its layout {self.number}; materialize the view again")

    def _unpack_variable(self, packed: Sequence[bytes], start: int) -> dict[str, Array]:
        columns: dict[str, Array] = {name: np.empty(len(packed), object) for name, _ in self.variable}
        texts = [(columns[name], dtype == "STRING") for name, dtype in self.variable]
        for row, value in enumerate(packed):
            at = start
            for column, text in texts:
                (length,) = _LENGTH.unpack_from(value, at)
                at += _LENGTH.size + length
                part = value[at - length : at]
                column[row] = part.decode() if text else part
            if at != len(value):  # slicing a truncated value gives a shorter string without an error
                raise self._layout_error()
        return columns


def _encode_variable(column: Column) -> list[bytes]:
    """Length-prefixed bytes of each row's value; nulls are empty."""
    encoded = [each.encode() if isinstance(each, str) else each for each in column.values.tolist()]
    if column.nulls is not None:
        encoded = [b"" if null else each for each, null in zip(encoded, column.nulls.tolist(), strict=True)]
    return [_LENGTH.pack(len(each)) + each for each in encoded]


def unpack_rows(
    found: Sequence[StoredRow], fields: Sequence[tuple[str, str]], layouts: Mapping[int, RowLayout]
) -> ViewRows:
    """Values of some fields (name, dtype) for N lookups, whatever layouts the rows were written with.

    DataLoss when a row has an unknown layout number, or does not fit its layout.
    """
    present = [each for each in found if each is not None]
    packed = [each[1] for each in present]
    groups = _group_by_layout(packed, layouts)
    if len(present) == len(found) and len(groups) == 1 and groups[0][1].has_all(fields):
        return _unpack_one_layout(present, groups[0][1], packed, fields)
    is_found = np.array([each is not None for each in found], bool)
    rows = np.flatnonzero(is_found)
    events = np.zeros(len(found), np.int64)
    events[rows] = [each[0] for each in present]
    values = [np.full(len(found), null_filler(dtype), numpy_dtype(dtype)) for _, dtype in fields]
    nulls, absent = np.ones((2, len(fields), len(found)), bool)
    for at, layout, part in groups:
        columns, part_nulls = layout.unpack(part)
        for field, (name, _) in enumerate(fields):
            if name in columns:
                values[field][rows[at]] = columns[name]
                nulls[field, rows[at]] = part_nulls[:, layout.positions[name]]
                absent[field, rows[at]] = False
    return ViewRows(is_found, events, values, nulls, absent)


def _unpack_one_layout(
    found: Sequence[tuple[int, bytes]], layout: RowLayout, packed: Sequence[bytes], fields: Sequence[tuple[str, str]]
) -> ViewRows:
    """The fast path of the common case: every entity was found, and all rows have one layout."""
    columns, nulls = layout.unpack(packed)
    return ViewRows(
        np.ones(len(found), bool),
        np.array([each[0] for each in found], np.int64),
        [np.ascontiguousarray(columns[name]) for name, _ in fields],
        nulls.T[[layout.positions[name] for name, _ in fields]],
        None,
    )


def _group_by_layout(
    packed: Sequence[bytes], layouts: Mapping[int, RowLayout]
) -> list[tuple[Any, RowLayout, Sequence[bytes]]]:
    """(positions, layout, values) for each layout among the rows; nearly always there is one."""
    numbers = [value[: _LAYOUT_NUMBER.size] for value in packed]
    groups: list[tuple[Any, RowLayout, Sequence[bytes]]] = []
    for head in set(numbers):
        layout = layouts.get(_LAYOUT_NUMBER.unpack(head)[0]) if len(head) == _LAYOUT_NUMBER.size else None
        if layout is None:
            raise DataLoss("a stored row names a layout that this service does not know; materialize the view again")
        if numbers.count(head) == len(numbers):
            return [(slice(None), layout, packed)]
        at = [position for position, each in enumerate(numbers) if each == head]
        groups.append((np.array(at), layout, [packed[position] for position in at]))
    return groups
