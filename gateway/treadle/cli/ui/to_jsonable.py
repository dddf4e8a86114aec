"""Conversion of results to JSON values: messages, dataclasses and arrays become dicts, lists, numbers and texts.

Messages keep their fields' names; numbers stay numbers (protobuf's own JSON writes 64-bit integers as texts); enums
become their names without prefix; columns become lists of values with None for null; NaN becomes None.
"""

import dataclasses
import math
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import numpy as np
from google.protobuf.message import Message

from treadle.rpc.codec.columns import decode
from treadle.v1 import evaluation_pb2, types_pb2


def to_jsonable(value: Any) -> Any:
    """The JSON value of a result of the client."""
    if isinstance(value, types_pb2.Column):
        return _column(value)
    if isinstance(value, Message):
        return {field.name: _field(value, field) for field in value.DESCRIPTOR.fields if _present(value, field)}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_jsonable(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return to_jsonable(value._asdict())
    if isinstance(value, Mapping):
        return {str(key): to_jsonable(each) for key, each in value.items()}
    if isinstance(value, np.ndarray):
        return [_scalar(each) for each in value] if value.ndim == 1 else [to_jsonable(each) for each in value]
    if isinstance(value, list | tuple) or hasattr(value, "add"):
        return [to_jsonable(each) for each in value]
    return _scalar(value)


def time_text(micros: int) -> str:
    """Microseconds since 1970 as "2013-10-01 05:15:00Z"; "" for 0."""
    return datetime.fromtimestamp(micros / 1e6, UTC).strftime("%Y-%m-%d %H:%M:%SZ") if micros else ""


def verdict_text(number: evaluation_pb2.Verdict.ValueType) -> str:
    """The words of a verdict: "not enough data" for VERDICT_NOT_ENOUGH_DATA."""
    return evaluation_pb2.Verdict.Name(number).removeprefix("VERDICT_").replace("_", " ").lower()


def metrics_text(values: Mapping[str, float]) -> str:
    """Metrics as text: "log_loss 0.4, roc_auc 0.7"."""
    return ", ".join(f"{name} {value:.4g}" for name, value in sorted(values.items()))


def _column(pb: types_pb2.Column) -> dict[str, Any]:
    column = decode(pb)
    values = to_jsonable(column.values)
    if column.nulls is not None:
        values = [None if null else each for each, null in zip(values, column.nulls.tolist(), strict=True)]
    return {"name": column.name, "dtype": column.dtype, "values": values}


def _present(message: Message, field: Any) -> bool:
    return not field.has_presence or message.HasField(field.name)


def _field(message: Message, field: Any) -> Any:
    value = getattr(message, field.name)
    if field.enum_type is not None:
        prefix = f"{_snake(field.enum_type.name)}_"
        name = field.enum_type.values_by_number
        if field.is_repeated:
            return [name[number].name.removeprefix(prefix) for number in value]
        return name[value].name.removeprefix(prefix)
    if isinstance(value, bytes):
        return f"{len(value)} bytes"
    if isinstance(value, Message) or not field.is_repeated:
        return to_jsonable(value)
    if isinstance(value, Mapping):
        return to_jsonable(dict(value))
    return [to_jsonable(each) for each in value]


def _snake(name: str) -> str:
    """FeatureStatus -> FEATURE_STATUS."""
    return "".join(f"_{letter}" if letter.isupper() else letter.upper() for letter in name).removeprefix("_")


def _scalar(value: Any) -> Any:
    if isinstance(value, np.datetime64):
        return None if np.isnat(value) else f"{value.astype('datetime64[us]')}Z"
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, bytes):
        return value.decode("latin-1")
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
