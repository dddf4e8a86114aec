"""Concurrent answers to the requests of one stream, a bounded number at a time."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, TypeVar

RequestT = TypeVar("RequestT")
ResponseT = TypeVar("ResponseT")


async def answered(
    requests: AsyncIterator[RequestT],
    answer: Callable[[RequestT], Coroutine[Any, Any, ResponseT]],
    most: int,
    *,
    in_order: bool = False,
) -> AsyncIterator[ResponseT]:
    """Answers as they complete, or in the order of the requests.

    At most `most` requests are in work or wait to be sent; no more are read. The first error that `answer` or
    `requests` raises ends the stream, and with it what is still in work.
    """
    ready: asyncio.Queue[asyncio.Task[ResponseT] | None] = asyncio.Queue()
    places = asyncio.Semaphore(most)
    tasks: set[asyncio.Task[ResponseT]] = set()

    async def read() -> None:
        async for request in requests:
            await places.acquire()
            task = asyncio.create_task(answer(request))
            tasks.add(task)
            if in_order:
                ready.put_nowait(task)
            else:
                task.add_done_callback(ready.put_nowait)
        if tasks:
            await asyncio.wait(tasks)

    reader = asyncio.create_task(read())
    reader.add_done_callback(lambda _: ready.put_nowait(None))
    try:
        while (task := await ready.get()) is not None:
            tasks.discard(task)
            yield await task
            places.release()
        await reader
    finally:
        for left in (reader, *tasks):
            left.cancel()
        await asyncio.gather(reader, *tasks, return_exceptions=True)
