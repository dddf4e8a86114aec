"""Background work of a service, in tasks and in threads."""

import asyncio
from collections.abc import Callable
from contextlib import suppress


async def end(task: "asyncio.Task[None]") -> None:
    """Cancels a task that would go on for ever, and waits until it has ended. Raises what it had failed of."""
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


async def in_thread(work: Callable[[], None]) -> None:
    """Runs `work` on a thread, and waits for its end even when cancelled: a thread cannot be stopped, and what it wrote
    after its service has ended would overwrite what the next one finds."""
    task = asyncio.ensure_future(asyncio.to_thread(work))
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise


def notify(loop: asyncio.AbstractEventLoop, callback: Callable[[], None]) -> None:
    """Runs `callback` on the loop; nothing if the loop is gone, for then nobody waits."""
    try:
        loop.call_soon_threadsafe(callback)
    except RuntimeError:
        if not loop.is_closed():
            raise
