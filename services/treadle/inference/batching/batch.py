"""Queued requests, batches and results, and the concatenation and slicing of their rows.

A queued request holds arrays or, where the signature fixes the size of every row, the bytes of the message. Bytes are
cheaper to concatenate: one join gives the array of the whole batch, without an array for each request.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Self

import numpy as np

from treadle.core.dtypes import numpy_dtype
from treadle.plugins.tensors import Array, Signature, Tensors

RawInputs = Sequence[bytes]
"""The bytes of each input in the order of the signature: little-endian, row by row."""
# Rows of text have no fixed size; not every byte is a valid boolean.
_NO_FIXED_BYTES = frozenset({"STRING", "BYTES", "BOOL"})


class InputLayout:
    """The byte layout of a model's input rows."""

    def __init__(self, signature: Signature) -> None:
        """`signature` has rows of a fixed size; see `of`."""
        self.names = tuple(spec.name for spec in signature.inputs)
        self._signature = signature
        self._tensors = [(spec.name, numpy_dtype(spec.dtype), spec.shape[1:]) for spec in signature.inputs]
        self.row_bytes = tuple(dtype.itemsize * prod(shape) for _, dtype, shape in self._tensors)

    @classmethod
    def of(cls, signature: Signature) -> Self | None:
        """The layout of a signature; None where rows have no fixed size."""
        if any(spec.dtype in _NO_FIXED_BYTES or -1 in spec.shape[1:] for spec in signature.inputs):
            return None
        return cls(signature)

    def to_tensors(self, parts: Sequence[RawInputs], rows: int) -> Tensors:
        """The concatenated inputs of several requests; `rows` is their sum. InvalidInput for NaN where the signature
        forbids it."""
        tensors = {
            name: np.frombuffer(raws[0] if len(raws) == 1 else b"".join(raws), dtype).reshape(rows, *shape)
            for (name, dtype, shape), raws in zip(self._tensors, zip(*parts, strict=True), strict=True)
        }
        self._signature.check_inputs(tensors)
        return tensors


@dataclass(eq=False, slots=True)
class QueuedRequest:
    """A request, or a slice of a split one, that waits for its result."""

    inputs: Tensors | RawInputs
    rows: int
    bucket: object
    """Requests of equal buckets may share a batch: the `InputLayout` of bytes, the `bucket_key` of arrays."""
    deadline: float | None
    context: object
    """Passed on to the listener: the span context of a traced request, else None."""
    queued_at: float
    future: "asyncio.Future[InferenceResult]"
    is_queued: bool = True
    """False once it is in a batch, cancelled or expired."""


@dataclass(eq=False, slots=True)
class InferenceBatch:
    """Requests that run together, with their outputs and timings."""

    id: int
    requests: Sequence[QueuedRequest]
    rows: int
    started_at: float
    input_seconds: float = 0.0
    """Time to concatenate the inputs."""
    infer_seconds: float = 0.0
    """Time inside the model."""
    outputs: Tensors = field(default_factory=dict)
    encoded: dict[str, bytes] = field(default_factory=dict)
    """Outputs as bytes, encoded once for all responses that are sliced from them."""


@dataclass(eq=False, slots=True)
class InferenceResult:
    """The result of one request: its rows of a batch's outputs."""

    batch: InferenceBatch
    first_row: int
    """Its first row in the batch."""
    rows: int
    queue_seconds: float
    merged_outputs: Tensors | None = None
    """The outputs of a split request; `batch` is then the last of its batches."""

    @property
    def outputs(self) -> Tensors:
        """The outputs of the request; views of the batch's outputs unless it was split."""
        if self.merged_outputs is not None:
            return self.merged_outputs
        return slice_rows(self.batch.outputs, self.first_row, self.first_row + self.rows)


def bucket_key(inputs: Tensors) -> object:
    """Tensor names, dtypes and row shapes, in which the requests of one batch must agree."""
    return tuple(sorted((name, array.dtype.str, array.shape[1:]) for name, array in inputs.items()))


def slice_rows(tensors: Tensors, start: int, stop: int) -> dict[str, Array]:
    """The rows [start, stop) of each tensor, without a copy."""
    return {name: array[start:stop] for name, array in tensors.items()}


def concatenate_inputs(requests: Sequence[QueuedRequest], rows: int) -> Tensors:
    """The concatenated inputs of requests of one bucket; `rows` is their sum."""
    layout = requests[0].bucket
    if isinstance(layout, InputLayout):
        raws: list[RawInputs] = [request.inputs for request in requests]  # type: ignore[misc]  # bytes have a layout
        return layout.to_tensors(raws, rows)
    arrays: list[Tensors] = [request.inputs for request in requests]  # type: ignore[misc]  # arrays have none
    if len(arrays) == 1:
        return arrays[0]
    return {name: np.concatenate([part[name] for part in arrays]) for name in arrays[0]}


def concatenate_results(results: Sequence[InferenceResult]) -> InferenceResult:
    """The result of a split request from the results of its slices."""
    parts = [result.outputs for result in results]
    outputs = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    rows = sum(result.rows for result in results)
    return InferenceResult(results[-1].batch, 0, rows, results[0].queue_seconds, outputs)
