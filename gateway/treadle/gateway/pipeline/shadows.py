"""Copies of requests to versions whose answers reach no caller: off the request's path, and dropped when busy."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace

from treadle.core.errors import TreadleError
from treadle.rpc.context import current, request_scope


class Shadows:
    """Runs shadow requests in the background.

    At most `most` run at once; more are dropped, and so they can't slow the traffic that they copy. `ended(version,
    outcome)` is told of each: "ok", "error" or "dropped".
    """

    def __init__(
        self,
        most: int,
        ended: Callable[[str, str], None],
        log_unexpected: Callable[[str, BaseException], None],
    ) -> None:
        self._most = most
        self._ended = ended
        self._log_unexpected = log_unexpected
        self._tasks: set[asyncio.Task[None]] = set()

    def cast(self, version: str, work: Callable[[], Awaitable[None]]) -> None:
        """Starts `work` unless too many are running."""
        if len(self._tasks) >= self._most:
            self._ended(version, "dropped")
            return
        # The caller's deadline ends with its answer, not with the shadow's.
        with request_scope(replace(current(), deadline=None)):
            task = asyncio.create_task(self._run(version, work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run(self, version: str, work: Callable[[], Awaitable[None]]) -> None:
        try:
            await work()
        except TreadleError:
            self._ended(version, "error")
        except Exception as error:
            self._log_unexpected(version, error)
            self._ended(version, "error")
        else:
            self._ended(version, "ok")

    async def drain(self) -> None:
        """Waits for those that run."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    async def close(self) -> None:
        """Ends those that run."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
