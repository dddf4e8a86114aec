"""Features with their statuses and ages to their wire form, `treadle.v1.FeatureColumn`."""

import numpy as np
from numpy.typing import NDArray

from treadle.core.column import Column
from treadle.rpc.codec.columns import encode_column
from treadle.rpc.codec.protobuf_wire import field
from treadle.v1 import types_pb2

_COLUMN = types_pb2.FeatureColumn.COLUMN_FIELD_NUMBER
_STATUSES = types_pb2.FeatureColumn.STATUSES_FIELD_NUMBER
_AGES = types_pb2.FeatureColumn.AGES_SECONDS_FIELD_NUMBER


def encode_feature(column: Column, statuses: NDArray[np.integer], ages_seconds: NDArray[np.float64]) -> bytes:
    """The message of one feature of N rows as bytes; `statuses` and `ages_seconds` have the shape (N,).

    Packed, statuses and ages are on the wire what numpy holds (a status takes one byte, an age eight); number by number
    they would cost eight times as long.
    """
    packed_statuses = field(_STATUSES, statuses.astype(np.uint8, copy=False).tobytes())
    packed_ages = field(_AGES, ages_seconds.astype("<f8", copy=False).tobytes())
    return field(_COLUMN, encode_column(column)) + packed_statuses + packed_ages
