"""One thread that runs what it is given, in order; a model version lives on one of its own.

It is a daemon: Python cannot end a thread that is stuck inside a backend, so a stuck worker is abandoned, and
neither the event loop nor the end of the process waits for it.
"""

import asyncio
import queue
import threading
from collections.abc import Callable
from typing import TypeVar

from treadle.core.tasks import notify

T = TypeVar("T")


class Worker:
    """Runs callables on its thread."""

    def __init__(self, name: str) -> None:
        self._tasks: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        threading.Thread(target=self._run, name=name, daemon=True).start()

    def post(self, task: Callable[[], None]) -> None:
        """Queues `task`, which must not raise."""
        self._tasks.put(task)

    async def call(self, function: Callable[[], T]) -> T:
        """Runs `function` on the thread; to its end, even if the caller leaves."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()

        def settle(value: T | None, error: BaseException | None) -> None:
            if future.done():
                return
            if error is None:
                future.set_result(value)  # type: ignore[arg-type]  # None only where T is None
            else:
                future.set_exception(error)

        def task() -> None:
            try:
                outcome: tuple[T | None, BaseException | None] = (function(), None)
            except BaseException as error:  # backends may raise anything; it belongs to the caller
                # StopIteration cannot travel through a future.
                raised = RuntimeError("StopIteration") if isinstance(error, StopIteration) else error
                outcome = (None, raised)
            notify(loop, lambda: settle(*outcome))

        self.post(task)
        return await future

    def stop(self) -> None:
        """Ends the thread after what is queued; one that is stuck is left behind."""
        self._tasks.put(None)

    def _run(self) -> None:
        while (task := self._tasks.get()) is not None:
            task()
