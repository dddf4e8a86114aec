"""Spans that Envoy recorded for its services, brought to the form of those that the SDK records.

Envoy knows attributes as text only, keeps the slash before a method, cannot tell what a cancelled call ended with, and
adds a score of attributes of its own (addresses, sizes, user agents), of which nothing is kept.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from treadle.observability.telemetry.span_attributes import REQUEST_ATTRIBUTES
from treadle.observability.tracestore.spans import Value

MARK: Final = ("treadle.host", "envoy")
"""The attribute of a resource whose spans these are. Other people's Envoys have their own ways."""
_METHOD, _CODE, _STREAM = "rpc.method", "rpc.status_code", "treadle.stream"
_SERVICE = "treadle.service"
_TIMEOUT, _FLAGS = "grpc.timeout", "response_flags"
_READ = {_METHOD, _CODE, _STREAM, _TIMEOUT, _FLAGS, "rpc.system.name", *REQUEST_ATTRIBUTES}
_UNKNOWN, _CALLER_LEFT = "UNKNOWN", "DR"
_MAX_DIGITS = 24  # of a number that JSON and the store can hold
_SLACK = 20e6
"""Nanoseconds: a caller counts from before the request left, the span from when it arrived."""
_UNITS = {"H": 3600e9, "M": 60e9, "S": 1e9, "m": 1e6, "u": 1e3, "n": 1.0}


@dataclass(frozen=True, slots=True)
class NativeSpan:
    """What a span of Envoy says of its request."""

    name: str
    service: str
    """Empty where the process has one service, which its resource names."""
    failed: bool
    attributes: dict[str, Value]


def is_native(resource: Iterable[KeyValue]) -> bool:
    """Whether the spans of a resource with these attributes come from an Envoy host."""
    return any((pair.key, pair.value.string_value) == MARK for pair in resource)


def read_native(span: Span) -> NativeSpan:
    """`span` in the terms of ours. Values are as long as they came; unreadable numbers stay text."""
    said = {pair.key: pair.value.string_value for pair in span.attributes if pair.key in _READ}
    method = said.get(_METHOD, span.name).removeprefix("/")
    attributes: dict[str, Value] = {name: _typed(name, text) for name, text in said.items() if _is_ours(name)}
    if _STREAM in said:
        attributes[_STREAM] = True
    code = said.get(_CODE, _UNKNOWN)
    if code == _UNKNOWN and _CALLER_LEFT in said.get(_FLAGS, ""):  # before or after the answer began
        code = _left(said.get(_TIMEOUT, ""), span.end_time_unix_nano - span.start_time_unix_nano)
    attributes |= {_METHOD: method, _CODE: code}
    if code != "OK":
        attributes["error.type"] = code
    service = str(attributes.pop(_SERVICE, ""))
    return NativeSpan(span.name.removeprefix("/"), service, code != "OK", attributes)


def _is_ours(name: str) -> bool:
    return name in REQUEST_ATTRIBUTES or name == "rpc.system.name"


def _typed(name: str, text: str) -> Value:
    try:
        value = REQUEST_ATTRIBUTES.get(name, str)(text)
    except ValueError:
        return text
    return value if isinstance(value, str) or (len(text) <= _MAX_DIGITS and math.isfinite(value)) else text


def _left(timeout: str, nanos: int) -> str:
    """The status of a call whose caller left after `nanos`: at the deadline that `timeout` ("500m") set, or before."""
    number, unit = timeout[:-1], _UNITS.get(timeout[-1:])
    late = unit is not None and number.isascii() and number.isdigit() and int(number[:8]) * unit <= nanos + _SLACK
    return "DEADLINE_EXCEEDED" if late else "CANCELLED"
