"""Background work of a service."""

import asyncio
from contextlib import suppress


async def end(task: "asyncio.Task[None]") -> None:
    """Cancels a task that would go on for ever, and waits until it has ended. Raises what it had failed of."""
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
