"""Overload: excess requests are refused at once, admitted requests complete in time, and no computation is wasted."""

import asyncio
from collections import deque
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from random import Random
from typing import Any

import numpy as np
import pytest

from treadle.core.errors import DeadlineExceeded, Overloaded
from treadle.inference.api.admission import ModelLimits
from treadle.inference.batching.batcher import Batcher, BatchListener
from treadle.plugins.tensors import Tensors

COST = 0.01
"""Seconds of a batch of one row: the capacity of the model is a hundred rows a second."""
TARGET = 0.1
ROW = {"x": np.zeros(1)}


@dataclass
class Simulated:
    """A simulated model and thread: time advances only when the test says so."""

    now: float = 0.0
    posted: deque[tuple[float, Callable[[], None]]] = field(default_factory=deque)
    """Posted tasks, with the time of posting."""
    computed: int = 0

    def post(self, task: Callable[[], None]) -> None:
        self.posted.append((self.now, task))

    def predict(self, inputs: Tensors, rows: int) -> Tensors:
        self.computed += rows
        self.now += COST
        return inputs

    def batcher(self, **limits: Any) -> Batcher:
        listener = BatchListener(lambda batch: nullcontext(), lambda batch, now: None, lambda reason: None)
        worker: Any = self
        return Batcher(
            "m/1",
            self.predict,
            worker,
            ModelLimits(**{"max_rows": 1, "target_seconds": TARGET, **limits}),
            listener,
            clock=lambda: self.now,
        )

    async def until(self, moment: float) -> None:
        """Runs the tasks that complete by `moment`."""
        await _turns()
        while self.posted and self.posted[0][0] + COST <= moment:
            self.now, task = self.posted.popleft()
            task()  # time passes in `predict`
            await _turns()
        self.now = moment


async def _turns() -> None:
    for _ in range(6):  # as many as lie between an answer and the batch after it
        await asyncio.sleep(0)


async def _load(
    batcher: Batcher, model: Simulated, rate: float, seconds: float, allowed: float | None = None
) -> list[tuple[float, float | Exception]]:
    """The completion time of each request, with its latency or its error.

    `allowed`: seconds from its arrival to its deadline.
    """
    ends: list[tuple[float, float | Exception]] = []
    random, end, arrival = Random(7), model.now + seconds, model.now

    async def ask(arrived: float) -> None:
        try:
            await batcher.submit(ROW, 1, deadline=None if allowed is None else arrived + allowed)
        except (Overloaded, DeadlineExceeded) as error:
            ends.append((model.now, error))
        else:
            ends.append((model.now, model.now - arrived))

    asked = []
    while arrival < end:
        arrival += random.expovariate(rate)
        await model.until(arrival)
        asked.append(asyncio.create_task(ask(arrival)))
    while not all(task.done() for task in asked):
        await model.until(model.now + COST)
    await asyncio.gather(*asked)
    return ends


@pytest.mark.parametrize("times", [1.5, 3, 10])
async def test_goodput_and_latency_are_stable_under_overload(times: float) -> None:
    model = Simulated()
    batcher = model.batcher()
    ends = await _load(batcher, model, times / COST, 12)
    steady = [took for at, took in ends if 5 <= at < 12 and isinstance(took, float)]
    assert len(steady) >= 0.95 * 7 / COST
    assert np.percentile(steady, 99) <= 2 * TARGET
    assert max(took for _, took in ends if isinstance(took, float)) <= 4 * TARGET  # on the way there, too
    for _, refused in ends:
        if isinstance(refused, Overloaded):
            assert refused.retry_after_seconds
            assert 0.001 <= refused.retry_after_seconds < 2


async def test_below_capacity_nothing_is_refused() -> None:
    model = Simulated()
    ends = await _load(model.batcher(), model, 0.7 / COST, 12)
    assert all(isinstance(took, float) for _, took in ends)


async def test_requests_that_would_miss_their_deadline_are_refused_at_once() -> None:
    """Three times the capacity, all requests with a deadline of five times the cost of one."""
    model = Simulated()
    ends = await _load(model.batcher(target_seconds=10), model, 3 / COST, 5, allowed=5 * COST)
    served = [took for _, took in ends if isinstance(took, float)]
    late = [error for _, error in ends if isinstance(error, DeadlineExceeded)]
    assert len(served) >= 0.95 * 5 / COST
    assert max(served) <= 6 * COST  # the one that is being computed when its deadline passes is still answered
    assert len(late) <= 0.05 * len(ends)
    assert model.computed == len(served)


async def test_a_refusal_names_the_model_and_comes_before_anything_is_queued() -> None:
    model = Simulated()
    batcher = model.batcher(queue_rows=2)
    waiting = [asyncio.create_task(batcher.submit(ROW, 1)) for _ in range(2)]
    await asyncio.sleep(0)
    with pytest.raises(Overloaded, match="model m/1 has 2 in progress"):
        batcher.admit(None)
    await model.until(1)
    await asyncio.gather(*waiting)
    batcher.admit(None)


async def test_cancelled_and_expired_requests_free_their_place() -> None:
    model = Simulated()
    batcher = model.batcher(queue_rows=3)
    first = asyncio.create_task(batcher.submit(ROW, 1))
    await _turns()
    gone = asyncio.create_task(batcher.submit(ROW, 1))
    late = asyncio.create_task(batcher.submit(ROW, 1, deadline=0.5 * COST))
    await _turns()
    with pytest.raises(Overloaded):
        batcher.admit(None)
    gone.cancel()
    await model.until(1)
    await first
    with pytest.raises(DeadlineExceeded):
        await late
    assert batcher.queued_rows == 0
    others = [asyncio.create_task(batcher.submit(ROW, 1)) for _ in range(3)]
    await model.until(2)
    await asyncio.gather(*others)
    assert model.computed == 4
