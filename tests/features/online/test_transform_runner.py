"""A transform that hangs fails only its own request."""

import asyncio
import threading
from collections.abc import Iterator
from functools import partial

import pytest

from treadle.core.errors import DeadlineExceeded, Unavailable
from treadle.features.online.transform_runner import TransformRunner

LONG = 60.0


@pytest.fixture
def runner() -> Iterator[TransformRunner]:
    made = TransformRunner(workers=1)
    yield made
    made.close()


async def test_results_and_errors_come_back(runner: TransformRunner) -> None:
    assert await runner.run(lambda: 7, LONG, "it") == 7
    with pytest.raises(ZeroDivisionError):
        await runner.run(lambda: 1 // 0, LONG, "it")
    assert await asyncio.gather(*(runner.run(partial(int, at), LONG, "it") for at in range(5))) == list(range(5))


async def test_a_blocking_transform_times_out(runner: TransformRunner) -> None:
    forever = threading.Event()
    with pytest.raises(DeadlineExceeded, match=r"transforms of it did not answer for 0\.05 s"):
        await runner.run(forever.wait, 0.05, "it")
    assert await runner.run(lambda: 7, LONG, "it") == 7
    forever.set()


async def test_an_endless_python_loop_is_stopped(runner: TransformRunner) -> None:
    worker: list[threading.Thread] = []

    def loop() -> None:
        worker.append(threading.current_thread())
        while True:
            try:
                sum(range(100))
            except Exception:  # what careless user code does
                continue

    with pytest.raises(DeadlineExceeded):
        await runner.run(loop, 0.05, "it")
    await asyncio.to_thread(worker[0].join, 10)
    assert not worker[0].is_alive()


async def test_calls_queued_behind_a_stuck_call_run(runner: TransformRunner) -> None:
    forever = threading.Event()
    hung = asyncio.create_task(runner.run(forever.wait, 0.05, "it"))
    await asyncio.sleep(0)
    assert await runner.run(lambda: 7, LONG, "it") == 7
    with pytest.raises(DeadlineExceeded):
        await hung
    forever.set()


async def test_calls_are_refused_while_too_many_threads_are_stuck(runner: TransformRunner) -> None:
    forever = threading.Event()
    for _ in range(16):
        with pytest.raises(DeadlineExceeded):
            await runner.run(forever.wait, 0.01, "it")
    with pytest.raises(Unavailable, match="16 transform calls hang"):
        await runner.run(lambda: 7, LONG, "it")
    forever.set()
    for each in runner._stuck:
        await asyncio.to_thread(each.join)
    assert await runner.run(lambda: 7, LONG, "it") == 7


async def test_a_cancelled_call(runner: TransformRunner) -> None:
    started, go_on = threading.Event(), threading.Event()

    def slow() -> None:
        started.set()
        go_on.wait()

    gone = asyncio.create_task(runner.run(slow, LONG, "it"))
    await asyncio.to_thread(started.wait)
    gone.cancel()
    with pytest.raises(asyncio.CancelledError):
        await gone
    go_on.set()
    assert await runner.run(lambda: 7, LONG, "it") == 7


async def test_a_cancelled_call_that_hangs(runner: TransformRunner) -> None:
    started, forever = threading.Event(), threading.Event()

    def hang() -> None:
        started.set()
        forever.wait()

    gone = asyncio.create_task(runner.run(hang, 0.2, "it"))
    await asyncio.to_thread(started.wait)
    gone.cancel()
    with pytest.raises(asyncio.CancelledError):
        await gone
    assert await runner.run(lambda: 7, LONG, "it") == 7  # on the thread that took the place of the one that hangs
    forever.set()


async def test_a_call_that_hangs_while_the_runner_is_closed(runner: TransformRunner) -> None:
    started, forever = threading.Event(), threading.Event()

    def hang() -> None:
        started.set()
        forever.wait()

    complaints: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
    hung = asyncio.create_task(runner.run(hang, 0.2, "it"))
    await asyncio.to_thread(started.wait)
    runner.close()
    async with asyncio.timeout(10):
        with pytest.raises(DeadlineExceeded, match="did not answer"):
            await hung
    assert not complaints
    forever.set()
