"""Requests that run together: what a batch is, and how rows go into it and come out again.

A request waits in one of two forms: as arrays, or, where the signature fixes the size of every row, as the bytes that
came over the wire. Bytes are cheaper to put together: one join makes one array of the whole batch, and no array is
made for each request.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Self

import numpy as np

from treadle.core.dtypes import numpy_dtype
from treadle.plugins.tensors import Array, Signature, Tensors

Raws = Sequence[bytes]
"""The bytes of each input in the order of the signature: little-endian, row by row."""
# Of text no row has a fixed size; of booleans not every byte is one.
_NO_FIXED_BYTES = frozenset({"STRING", "BYTES", "BOOL"})


class Layout:
    """How the rows of a model's inputs lie in bytes."""

    def __init__(self, signature: Signature) -> None:
        """Of a signature whose rows have a fixed size."""
        self.names = tuple(spec.name for spec in signature.inputs)
        self._signature = signature
        self._tensors = [(spec.name, numpy_dtype(spec.dtype), spec.shape[1:]) for spec in signature.inputs]
        self.row_bytes = tuple(dtype.itemsize * prod(shape) for _, dtype, shape in self._tensors)

    @classmethod
    def of(cls, signature: Signature) -> Self | None:
        """None where rows have no fixed size."""
        if any(spec.dtype in _NO_FIXED_BYTES or -1 in spec.shape[1:] for spec in signature.inputs):
            return None
        return cls(signature)

    def gathered(self, parts: Sequence[Raws], rows: int) -> Tensors:
        """The inputs of several requests, one behind the other; `rows` is their sum. InvalidInput for NaN in a row
        where the signature allows none."""
        tensors = {
            name: np.frombuffer(raws[0] if len(raws) == 1 else b"".join(raws), dtype).reshape(rows, *shape)
            for (name, dtype, shape), raws in zip(self._tensors, zip(*parts, strict=True), strict=True)
        }
        self._signature.check_inputs(tensors)
        return tensors


@dataclass(eq=False, slots=True)
class Job:
    """A request, or a slice of an oversize one, that waits for its outputs."""

    inputs: Tensors | Raws
    rows: int
    bucket: object
    """What requests must have in common to share a batch: their `Layout` if they are bytes, else see `bucket_of`."""
    deadline: float | None
    context: object
    """Whatever the observer wants to know the request by; None: nothing."""
    queued_at: float
    future: "asyncio.Future[Answer]"
    waits: bool = True
    """Until it is taken into a batch, or given up."""


@dataclass(eq=False, slots=True)
class Batch:
    """What ran together, as the observer sees it."""

    id: int
    jobs: Sequence[Job]
    rows: int
    started_at: float
    input_seconds: float = 0.0
    """Putting the inputs together."""
    infer_seconds: float = 0.0
    """Inside the model."""
    outputs: Tensors = field(default_factory=dict)
    packed: dict[str, bytes] = field(default_factory=dict)
    """Outputs as bytes, made once for all the answers that are cut from them."""


@dataclass(eq=False, slots=True)
class Answer:
    """Where the outputs of one request lie, and the company they were computed in."""

    batch: Batch
    at: int
    """Its first row in the batch."""
    rows: int
    queue_seconds: float
    joined: Tensors | None = None
    """The outputs of a request that was too large for one batch; `batch` is then the last of several."""

    @property
    def outputs(self) -> Tensors:
        """The request's own rows, without a copy."""
        return cut(self.batch.outputs, self.at, self.at + self.rows) if self.joined is None else self.joined


def bucket_of(inputs: Tensors) -> object:
    """What requests must have in common to share a batch: tensor names, dtypes and row shapes."""
    return tuple(sorted((name, array.dtype.str, array.shape[1:]) for name, array in inputs.items()))


def cut(tensors: Tensors, start: int, stop: int) -> dict[str, Array]:
    """Some rows of each tensor, without a copy."""
    return {name: array[start:stop] for name, array in tensors.items()}


def gathered(jobs: Sequence[Job], rows: int) -> Tensors:
    """The inputs of jobs of one bucket, one behind the other."""
    layout = jobs[0].bucket
    if isinstance(layout, Layout):
        return layout.gathered([job.inputs for job in jobs], rows)  # type: ignore[misc]  # jobs of a layout hold bytes
    arrays: list[Tensors] = [job.inputs for job in jobs]  # type: ignore[misc]  # and others arrays
    if len(arrays) == 1:
        return arrays[0]
    return {name: np.concatenate([part[name] for part in arrays]) for name in arrays[0]}


def joined(answers: Sequence[Answer]) -> Answer:
    """The answer to a request that was too large for one batch."""
    parts = [answer.outputs for answer in answers]
    outputs = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    rows = sum(answer.rows for answer in answers)
    return Answer(answers[-1].batch, 0, rows, answers[0].queue_seconds, outputs)
