"""Background loops: none ends unnoticed, none outlives its service."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from treadle.core.background import FIRST_DELAY_SECONDS, LONGEST_DELAY_SECONDS, Background


class Time:
    """A clock that only `sleep` moves; each sleep lets the other tasks run."""

    def __init__(self) -> None:
        self.now = 0.0
        self.slept: list[float] = []

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds
        await asyncio.sleep(0)

    def clock(self) -> float:
        return self.now


class Log:
    """Keeps what is logged as errors."""

    def __init__(self) -> None:
        self.errors: list[dict[str, Any]] = []

    def error(self, _event: str, **fields: Any) -> None:
        self.errors.append(fields)


def failing(times: int, error: Callable[[], BaseException], then: asyncio.Event) -> Callable[[], Awaitable[None]]:
    """A loop that fails so often, then says so and runs on."""
    runs = 0

    async def loop() -> None:
        nonlocal runs
        runs += 1
        if runs <= times:
            raise error()
        then.set()
        await asyncio.Event().wait()

    return loop


def background(log: Any, time: Time, restarted: Callable[[str], None] = lambda _: None) -> Background:
    return Background(log, restarted, sleep=time.sleep, clock=time.clock)


@pytest.mark.parametrize("error", [RuntimeError, OSError, asyncio.CancelledError])
async def test_a_loop_that_fails_is_logged_and_started_again(error: type[BaseException]) -> None:
    log, time, runs_on, restarts = Log(), Time(), asyncio.Event(), list[str]()
    async with background(log, time, restarts.append) as running:
        running.start("watch", failing(2, error, runs_on))
        await runs_on.wait()
    assert [(each["loop"], type(each["exc_info"])) for each in log.errors] == [("watch", error)] * 2
    assert restarts == ["watch"] * 2


async def test_a_loop_that_returns_is_started_again() -> None:
    log, time, runs = Log(), Time(), list[int]()
    twice = asyncio.Event()

    async def loop() -> None:
        runs.append(1)
        if len(runs) == 2:
            twice.set()

    async with background(log, time) as running:
        running.start("brief", loop)
        await twice.wait()
    assert "returned" in str(log.errors[0]["exc_info"])


async def test_delays_grow_up_to_a_bound() -> None:
    time, runs_on = Time(), asyncio.Event()
    async with background(Log(), time) as running:
        running.start("watch", failing(9, RuntimeError, runs_on))
        await runs_on.wait()
    assert time.slept[:3] == [FIRST_DELAY_SECONDS, FIRST_DELAY_SECONDS * 2, FIRST_DELAY_SECONDS * 4]
    assert time.slept[-2:] == [LONGEST_DELAY_SECONDS, LONGEST_DELAY_SECONDS]


async def test_after_a_long_good_run_the_first_delay_counts_again() -> None:
    time, runs_on = Time(), asyncio.Event()
    fails = failing(6, RuntimeError, runs_on)

    async def loop() -> None:
        if len(time.slept) == 4:
            time.now += LONGEST_DELAY_SECONDS + 1  # it ran for that long
        await fails()

    async with background(Log(), time) as running:
        running.start("watch", loop)
        await runs_on.wait()
    assert time.slept[4:] == [FIRST_DELAY_SECONDS, FIRST_DELAY_SECONDS * 2]


async def test_one_that_fails_leaves_the_others_alone() -> None:
    log, time, runs_on, other = Log(), Time(), asyncio.Event(), list[int]()

    async def steady() -> None:
        other.append(1)
        await asyncio.Event().wait()

    async with background(log, time) as running:
        running.start("steady", steady)
        running.start("watch", failing(3, RuntimeError, runs_on))
        await runs_on.wait()
    assert other == [1]
    assert {each["loop"] for each in log.errors} == {"watch"}


async def test_work_is_repeated_at_its_interval() -> None:
    time, runs, enough = Time(), list[float](), asyncio.Event()

    async def work() -> None:
        runs.append(time.now)
        if len(runs) == 3:
            enough.set()

    async with background(Log(), time) as running:
        running.every("clean", 10.0, work)
        await enough.wait()
    assert runs[:3] == [0.0, 10.0, 20.0]


async def test_leaving_waits_for_the_end_of_each_loop() -> None:
    begun, ended = asyncio.Event(), list[str]()

    async def loop() -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            ended.append("cleaned up")

    async with background(Log(), Time()) as running:
        running.start("watch", loop)
        await begun.wait()
    assert ended == ["cleaned up"]


async def test_a_loop_that_fails_while_it_is_ended_is_not_started_again() -> None:
    log, begun, runs = Log(), asyncio.Event(), list[int]()

    async def loop() -> None:
        runs.append(1)
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            raise ValueError("while cleaning up")

    async with background(log, Time()) as running:
        running.start("watch", loop)
        await begun.wait()
    assert runs == [1]
    assert isinstance(log.errors[0]["exc_info"], ValueError)
