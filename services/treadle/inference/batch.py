"""Requests that run together: what a batch is, and how rows go into it and come out again."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from treadle.plugins.tensors import Array, Tensors


@dataclass(eq=False, slots=True)
class Job:
    """A request, or a slice of an oversize one, that waits for its outputs."""

    inputs: Tensors
    rows: int
    bucket: object
    deadline: float | None
    context: object
    """Whatever the observer wants to know the request by."""
    queued_at: float
    future: "asyncio.Future[Answer]"


@dataclass(slots=True)
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


@dataclass(frozen=True, slots=True)
class Answer:
    """The outputs of one request and the company it was computed in."""

    outputs: Tensors
    batch: Batch
    queue_seconds: float


def bucket_of(inputs: Tensors) -> object:
    """What requests must have in common to share a batch: tensor names, dtypes and row shapes."""
    return tuple(sorted((name, array.dtype.str, array.shape[1:]) for name, array in inputs.items()))


def cut(tensors: Tensors, start: int, stop: int) -> dict[str, Array]:
    """Some rows of each tensor, without a copy."""
    return {name: array[start:stop] for name, array in tensors.items()}


def gathered(jobs: Sequence[Job]) -> Tensors:
    """The inputs of jobs of one bucket, one behind the other."""
    if len(jobs) == 1:
        return jobs[0].inputs
    return {name: np.concatenate([job.inputs[name] for job in jobs]) for name in jobs[0].inputs}


def answers_of(batch: Batch, outputs: Tensors) -> list[tuple[Job, Answer]]:
    """To each job its own rows of what the model answered."""
    results: list[tuple[Job, Answer]] = []
    at = 0
    for job in batch.jobs:
        own = outputs if len(batch.jobs) == 1 else cut(outputs, at, at + job.rows)
        results.append((job, Answer(own, batch, batch.started_at - job.queued_at)))
        at += job.rows
    return results


def joined(answers: Sequence[Answer]) -> Answer:
    """The answer to a request that was too large for one batch."""
    names = answers[0].outputs
    outputs = {name: np.concatenate([answer.outputs[name] for answer in answers]) for name in names}
    return Answer(outputs, answers[-1].batch, answers[0].queue_seconds)
