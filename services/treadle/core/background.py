"""Loops that run beside the requests of a service: a watch, a refresh, a cleaner.

    async with Background(log) as background:
        background.start("watch_deployments", follower.run)
        background.every("expire_traces", 10.0, expire)

A loop is meant to run until the service ends. One that raises, or returns, is logged and started again after a delay
that grows while it keeps failing, so no loop ends unnoticed.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Self

from structlog.typing import FilteringBoundLogger

FIRST_DELAY_SECONDS = 0.5
LONGEST_DELAY_SECONDS = 30.0
"""The longest wait before a restart; a loop that ran for longer than this begins with the first delay again."""

Loop = Callable[[], Awaitable[object]]


class Background:
    """The loops of one service. Leaving its context cancels them and waits until each has ended."""

    def __init__(
        self,
        log: FilteringBoundLogger,
        restarted: Callable[[str], None] = lambda _: None,
        *,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`restarted(name)` is called at each restart; `clock` is in seconds and never goes back."""
        self._log = log
        self._restarted = restarted
        self._sleep = sleep
        self._clock = clock
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def start(self, name: str, loop: Loop) -> None:
        """Runs `loop()` until the service ends; `name` stands in the log and in the metric of restarts."""
        self._tasks.append(asyncio.create_task(self._keep_running(name, loop), name=name))

    def every(self, name: str, seconds: float, work: Loop) -> None:
        """Runs `work()` now and `seconds` after each run that succeeded."""

        async def repeat() -> None:
            while True:
                await work()
                await self._sleep(seconds)

        self.start(name, repeat)

    async def _keep_running(self, name: str, loop: Loop) -> None:
        delay = FIRST_DELAY_SECONDS
        while True:
            started = self._clock()
            error = await _failure(loop)
            if self._clock() - started > LONGEST_DELAY_SECONDS:
                delay = FIRST_DELAY_SECONDS
            self._log.error("a background loop failed", loop=name, restart_in_seconds=delay, exc_info=error)
            if _is_cancelled():  # it failed while it was being ended
                return
            await self._sleep(delay)
            delay = min(delay * 2, LONGEST_DELAY_SECONDS)
            self._restarted(name)


async def _failure(loop: Loop) -> BaseException:
    """Runs the loop; what ended it. CancelledError is raised only where somebody cancelled this task."""
    try:
        await loop()
    except asyncio.CancelledError as error:
        if _is_cancelled():
            raise
        return error  # grpc.aio raises it in a call whose stream broke
    except Exception as error:
        return error
    return RuntimeError("the loop returned although its service goes on")


def _is_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
