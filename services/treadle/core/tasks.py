"""Tasks that somebody waits for, and work in threads. Loops that run beside requests: `treadle.core.background`."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

T = TypeVar("T")


async def cancel_and_wait(task: "asyncio.Task[None]") -> None:
    """Cancels a task and waits until it has ended. Raises what it had failed of."""
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


async def in_thread(work: Callable[[], T]) -> T:
    """Runs `work` on a thread, and waits for its end even when cancelled: a thread cannot be stopped, and what it wrote
    after its service has ended would overwrite what the next one finds."""
    task = asyncio.ensure_future(asyncio.to_thread(work))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise


def notify(loop: asyncio.AbstractEventLoop, callback: Callable[[], None]) -> None:
    """Runs `callback` on the loop; nothing where the loop is closed, since nobody waits any more."""
    try:
        loop.call_soon_threadsafe(callback)
    except RuntimeError:
        if not loop.is_closed():
            raise
