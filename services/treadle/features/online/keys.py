"""Encoding of entity keys as bytes; different entities have different keys (tested with random composite keys).

The parts follow the order of the view's entities: integers as 8 big-endian bytes (signed ones with the sign bit
flipped, so that keys sort as numbers), strings as a 2-byte length and UTF-8.
"""

import struct
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from treadle.core.column import Column
from treadle.core.errors import InvalidInput, Violation
from treadle.features.definitions import Entity

#: Below the key limit of every store (LMDB: 511 bytes).
MAX_KEY_BYTES: Final = 500
_LENGTH: Final = struct.Struct(">H")


def encode_keys(entities: Sequence[Entity], columns: Mapping[str, Column], where: str) -> list[bytes]:
    """One key for each row. The columns have the entities' types and no nulls. InvalidInput if a key is too long."""
    parts = [_encode(columns[each.name]) for each in entities]
    keys = parts[0] if len(parts) == 1 else [b"".join(row) for row in zip(*parts, strict=True)]
    for row, key in enumerate(keys):
        if len(key) > MAX_KEY_BYTES:
            what = f"row {row}: the entity key is {len(key)} bytes long, {MAX_KEY_BYTES} at most"
            raise InvalidInput(f"{where}: {what}", [Violation(where, what)])
    return keys


def _encode(column: Column) -> list[bytes]:
    if column.dtype == "STRING":
        encoded = [value.encode() for value in column.values.tolist()]
        # A length over 65,535 does not fit; `encode_keys` refuses such a key.
        return [_LENGTH.pack(min(len(each), 0xFFFF)) + each for each in encoded]
    return _encode_integers(column.values)


def _encode_integers(values: NDArray[Any]) -> list[bytes]:
    if values.dtype.kind == "u":
        ordered = values.astype(np.uint64)
    else:
        ordered = values.astype(np.int64).view(np.uint64) ^ np.uint64(1 << 63)
    raw = ordered.astype(">u8").tobytes()
    return [raw[start : start + 8] for start in range(0, len(raw), 8)]
