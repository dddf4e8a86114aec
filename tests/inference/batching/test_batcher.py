"""Laws of the greedy batcher, without messages."""

import asyncio
import threading
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from treadle.core.errors import DeadlineExceeded, Internal, Overloaded, Unavailable
from treadle.inference.api.admission import ModelLimits
from treadle.inference.batching.batch import InferenceBatch
from treadle.inference.batching.batcher import Batcher, BatchListener
from treadle.inference.batching.model_thread import ModelThread
from treadle.plugins.tensors import Tensors


class Model:
    """Doubles its rows; fails on a row of -1; waits for `gate` before each batch."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.started = threading.Semaphore(0)
        self.batches: list[int] = []

    def predict(self, inputs: Tensors, rows: int) -> Tensors:
        self.started.release()
        self.gate.wait(20)
        self.batches.append(rows)
        assert rows == len(inputs["x"])
        if (inputs["x"] == -1).any():
            raise ValueError("bad row")
        return {"y": inputs["x"] * 2}


def open_batcher(model: Model, *, hang: list[str] | None = None, clock: Any = None, **limits: Any) -> Batcher:
    def observe(batch: InferenceBatch) -> AbstractContextManager[None]:
        return nullcontext()

    worker = ModelThread("test")
    extra = {} if clock is None else {"clock": clock}
    return Batcher(
        "m/1",
        model.predict,
        worker,
        ModelLimits(**limits),
        BatchListener(observe, lambda batch, now: None, (hang if hang is not None else []).append),
        **extra,
    )


def column(*values: float) -> dict[str, Any]:
    return {"x": np.array(values)}


async def block_model(model: Model, batcher: Batcher) -> "asyncio.Task[Any]":
    """A request that keeps the model busy until the gate opens."""
    task = asyncio.create_task(batcher.submit(column(0), 1))
    await asyncio.to_thread(model.started.acquire)
    return task


REQUESTS = st.lists(
    st.tuples(
        st.lists(st.sampled_from([-1.0, 1.0, 2.0, 3.0, 4.0]), min_size=1, max_size=9),  # rows; -1 is a bad one
        st.sampled_from([1, 2]),  # width: the bucket
        st.sampled_from(["wait", "wait", "wait", "cancel", "late"]),
    ),
    max_size=12,
)


@settings(max_examples=60, deadline=None)
@given(REQUESTS, st.integers(1, 8), st.booleans())
def test_batched_is_unbatched(requests: list[tuple[list[float], int, str]], max_rows: int, busy: bool) -> None:
    asyncio.run(_law(requests, max_rows, busy))


async def _law(requests: list[tuple[list[float], int, str]], max_rows: int, busy: bool) -> None:
    model, now = Model(), [0.0]
    batcher = open_batcher(model, max_rows=max_rows, clock=lambda: now[0])
    if busy:
        first = await block_model(model, batcher)
    else:
        model.gate.set()
    tasks = []
    for values, width, fate in requests:
        inputs = {"x": np.repeat(np.array(values)[:, None], width, axis=1)}
        deadline = 1.0 if fate == "late" else None
        tasks.append(asyncio.create_task(batcher.submit(inputs, len(values), deadline=deadline)))
    await asyncio.sleep(0)  # all have been admitted
    for task, (_, _, fate) in zip(tasks, requests, strict=True):
        if fate == "cancel":
            task.cancel()
    if busy:
        now[0] = 2.0  # the late ones are late before anything of them is computed
        model.gate.set()
        await first
    results = await asyncio.gather(*tasks, return_exceptions=True)
    for (values, width, fate), result in zip(requests, results, strict=True):
        if fate == "cancel":
            assert isinstance(result, asyncio.CancelledError)
        elif fate == "late" and busy:
            assert isinstance(result, DeadlineExceeded)
        elif -1 in values:
            assert isinstance(result, Internal)
            assert "bad row" not in result.message
        else:
            assert not isinstance(result, BaseException)
            np.testing.assert_array_equal(result.outputs["y"], np.repeat(np.array(values)[:, None] * 2, width, axis=1))
    assert max(model.batches, default=0) <= max_rows
    await batcher.drain()
    assert batcher.queued_rows == 0


async def test_queued_requests_form_one_batch() -> None:
    model = Model()
    batcher = open_batcher(model, max_rows=8)
    first = await block_model(model, batcher)
    rest = [asyncio.create_task(batcher.submit(column(i), 1)) for i in range(10)]
    await asyncio.sleep(0)
    model.gate.set()
    answers = await asyncio.gather(first, *rest)
    assert model.batches == [1, 8, 2]
    assert [float(answer.outputs["y"][0]) for answer in answers] == [0, *(2.0 * i for i in range(10))]
    assert {answer.batch.id for answer in answers[1:9]} == {2}


async def test_a_full_queue_refuses_and_cancelled_requests_make_room() -> None:
    model = Model()
    batcher = open_batcher(model, queue_rows=3)
    first = await block_model(model, batcher)
    waiting = asyncio.create_task(batcher.submit(column(1, 2, 3), 3))
    await asyncio.sleep(0)
    with pytest.raises(Overloaded) as caught:
        await batcher.submit(column(4), 1)
    assert caught.value.retry_after_seconds
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    again = asyncio.create_task(batcher.submit(column(4), 1))
    await asyncio.sleep(0)
    model.gate.set()
    assert (await again).outputs["y"] == [8]
    await first


async def test_a_hung_model_is_abandoned() -> None:
    model, reasons = Model(), list[str]()
    batcher = open_batcher(model, hang=reasons, predict_seconds=0.05)
    calls = [asyncio.create_task(batcher.submit(column(i), 1)) for i in range(3)]
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert all(isinstance(result, Unavailable) for result in results)
    assert "abandoned" in reasons[0]
    with pytest.raises(Unavailable, match="hangs"):
        await batcher.submit(column(1), 1)
    await batcher.drain()
    model.gate.set()


async def test_draining_completes_accepted_requests_and_refuses_new_ones() -> None:
    model = Model()
    batcher = open_batcher(model)
    first = await block_model(model, batcher)
    draining = asyncio.create_task(batcher.drain())
    await asyncio.sleep(0)
    with pytest.raises(Unavailable, match="unloaded"):
        await batcher.submit(column(1), 1)
    assert not draining.done()
    model.gate.set()
    await draining
    assert (await first).outputs["y"] == [0]


async def test_an_expired_deadline_is_not_even_queued() -> None:
    model = Model()
    batcher = open_batcher(model, clock=lambda: 10.0)
    with pytest.raises(DeadlineExceeded):
        await batcher.submit(column(1), 1, deadline=10.0)
    assert not model.batches
