"""The two hops with concurrent requests asked together: wraps any `FeatureLookup` and any `Inference`."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

import numpy as np
from opentelemetry.trace import Tracer

from treadle.core.column import Column
from treadle.core.errors import Internal
from treadle.core.model_ref import ModelRef
from treadle.gateway.pipeline.coalescer import Coalescer
from treadle.gateway.pipeline.feature_batch import Features
from treadle.gateway.pipeline.lane import CoalesceLimits
from treadle.gateway.pipeline.request import Tensors
from treadle.gateway.upstream.ports import FeatureLookup, Inference
from treadle.rpc.context import FORWARDED, current

# A row that is larger counts as several, so that a call of many rows stays small enough to send.
_ROW_BYTES = 4096
Caller = tuple[str | None, ...]


def caller() -> Caller:
    """What of a caller travels on with a call: only calls for the same one go together."""
    call = current()
    return (call.tenant, *map(call.metadata.get, FORWARDED))


class _Asked(NamedTuple):
    """The columns of one lookup."""

    entities: Sequence[Column]
    context: Sequence[Column]
    rows: int


class _FeatureKey(NamedTuple):
    """What lookups must have in common."""

    service: str
    entities: tuple[object, ...]
    context: tuple[object, ...]
    now_micros: int
    caller: Caller


class CoalescedFeatures:
    """`FeatureLookup`: lookups of one feature service by the same columns become one for many rows."""

    def __init__(self, hop: FeatureLookup, limits: CoalesceLimits, tracer: Tracer) -> None:
        self._hop = hop
        self._coalescer = Coalescer(self._call, limits, tracer)

    async def look_up(
        self, service: str, entities: Sequence[Column], context: Sequence[Column], now_micros: int, timeout: float
    ) -> Features:
        """See `FeatureLookup`."""
        first = next(iter(entities or context), None)
        asked = _Asked(entities, context, 0 if first is None else first.rows)
        key = _FeatureKey(service, _kinds(entities), _kinds(context), now_micros, caller())
        return await self._coalescer.submit(key, asked, asked.rows, timeout)

    async def _call(self, key: _FeatureKey, requests: Sequence[_Asked], timeout: float) -> list[Features]:
        entities = _joined([request.entities for request in requests])
        context = _joined([request.context for request in requests])
        found = await self._hop.look_up(key.service, entities, context, key.now_micros, timeout)
        if len(requests) == 1:
            return [found]
        return [found.part(start, stop) for start, stop in _ranges([request.rows for request in requests])]


class _InferenceKey(NamedTuple):
    """What inferences must have in common."""

    ref: ModelRef
    tensors: tuple[object, ...]
    outputs: tuple[str, ...]
    caller: Caller


class CoalescedInference:
    """`Inference`: calls of one version with the same tensors and wanted outputs become one of many rows."""

    def __init__(self, hop: Inference, limits: CoalesceLimits, tracer: Tracer) -> None:
        self._hop = hop
        self._coalescer = Coalescer(self._call, limits, tracer)

    async def infer(self, ref: ModelRef, inputs: Tensors, outputs: Sequence[str], timeout: float) -> Tensors:
        """See `Inference`."""
        key = _InferenceKey(ref, tuple([_kind(*item) for item in inputs.items()]), tuple(outputs), caller())
        size = sum([array.nbytes for array in inputs.values()]) // _ROW_BYTES
        return await self._coalescer.submit(key, inputs, max(_rows(inputs), size), timeout)

    async def _call(self, key: _InferenceKey, requests: Sequence[Tensors], timeout: float) -> list[Tensors]:
        if len(requests) == 1:
            return [await self._hop.infer(key.ref, requests[0], key.outputs, timeout)]
        joined = {name: np.concatenate([inputs[name] for inputs in requests]) for name in requests[0]}
        found = await self._hop.infer(key.ref, joined, key.outputs, timeout)
        rows = _rows(joined)
        for name, array in found.items():
            if len(array) != rows:
                raise Internal(f"{key.ref}: output {name!r} has {len(array)} rows for {rows}")
        return [
            {name: array[start:stop] for name, array in found.items()} for start, stop in _ranges(map(_rows, requests))
        ]


def _kinds(columns: Sequence[Column]) -> tuple[object, ...]:
    return tuple([(column.name, column.dtype, column.row_shape) for column in columns])


def _kind(name: str, array: "np.ndarray[Any, np.dtype[Any]]") -> tuple[object, ...]:
    """An object array holds text or bytes: as what it travels, its first element says."""
    element = type(array.flat[0]) if array.dtype == object and array.size else None
    return name, array.dtype, array.shape[1:], element


def _rows(tensors: Tensors) -> int:
    return next((len(array) for array in tensors.values()), 0)


def _ranges(counts: Iterable[int]) -> Iterator[tuple[int, int]]:
    """Where the rows of each request begin and end."""
    return pairwise(accumulate(counts, initial=0))


def _joined(tables: Sequence[Sequence[Column]]) -> Sequence[Column]:
    """The rows of columns of the same names and types, one table behind the other."""
    if len(tables) == 1:
        return tables[0]
    return [_join(parts) for parts in zip(*tables, strict=True)]


def _join(parts: Sequence[Column]) -> Column:
    first, nulls = parts[0], None
    if any(part.nulls is not None for part in parts):
        nulls = np.concatenate([np.zeros(part.rows, bool) if part.nulls is None else part.nulls for part in parts])
    return Column(first.name, first.dtype, np.concatenate([part.values for part in parts]), nulls)
