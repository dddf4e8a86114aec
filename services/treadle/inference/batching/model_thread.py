"""A thread that runs callables in order; each model version has its own.

It is a daemon, because Python cannot end a thread that is stuck inside a backend: a stuck thread is abandoned, and
neither the event loop nor the exit of the process waits for it.
"""

import asyncio
import queue
import threading
from collections.abc import Callable
from typing import TypeVar

from treadle.core.tasks import notify

T = TypeVar("T")


class ModelThread:
    """Runs callables in order on one daemon thread."""

    def __init__(self, name: str) -> None:
        self._tasks: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        threading.Thread(target=self._run, name=name, daemon=True).start()

    def post(self, task: Callable[[], None]) -> None:
        """Queues `task`, which must not raise."""
        self._tasks.put(task)

    async def call(self, function: Callable[[], T]) -> T:
        """The result of `function`, run on the thread. Cancelling the caller does not stop it."""
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
            except BaseException as error:  # backends may raise anything; the caller gets it
                # A future cannot hold StopIteration.
                raised = RuntimeError("StopIteration") if isinstance(error, StopIteration) else error
                outcome = (None, raised)
            notify(loop, lambda: settle(*outcome))

        self.post(task)
        return await future

    def stop(self) -> None:
        """Ends the thread after the queued callables; a stuck thread is left behind."""
        self._tasks.put(None)

    def _run(self) -> None:
        while (task := self._tasks.get()) is not None:
            task()
