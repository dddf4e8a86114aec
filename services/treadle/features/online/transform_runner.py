"""Runs transforms on a few worker threads, so that one that hangs costs its own request and no other.

A hung call keeps its thread; the runner asks the thread to stop (which ends loops in Python, not waits in C), starts
another in its place, and refuses new work only while too many are stuck.
"""

import asyncio
import ctypes
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, Final, TypeVar

from treadle.core.errors import DeadlineExceeded, Unavailable
from treadle.core.tasks import notify

_T = TypeVar("_T")
_MOST_STUCK: Final = 16


class _Stop(BaseException):
    """Raised inside a hung transform. Not an Exception, so that user code does not swallow it by accident."""


class _Job:
    """One call, the loop that waits for it, and the thread that took it."""

    def __init__(self, call: Callable[[], Any], loop: asyncio.AbstractEventLoop) -> None:
        self.call = call
        self.loop = loop
        self.done: asyncio.Future[Any] = loop.create_future()
        self.thread: _Worker | None = None

    def finish(self, result: Any, error: BaseException | None) -> None:
        """Called on the loop."""
        if self.done.done():
            return
        if error is None:
            self.done.set_result(result)
        else:
            self.done.set_exception(error)


class _Worker(threading.Thread):
    def __init__(self, jobs: "SimpleQueue[_Job | None]", name: str) -> None:
        super().__init__(name=name, daemon=True)
        self._jobs = jobs
        self._state = threading.Lock()
        self._current: _Job | None = None
        self._abandoned = False

    def run(self) -> None:
        """Works until abandoned or told to end."""
        try:
            while not self._abandoned:
                job = self._jobs.get()
                if job is None:
                    return
                self._do(job)
        except _Stop:
            return

    def _do(self, job: _Job) -> None:
        with self._state:
            self._current = job
            job.thread = self
        result, error = None, None
        try:
            if not job.done.done():  # else nobody waits for it any more
                result = job.call()
        except Exception as raised:  # whatever it is goes to the request that waits
            error = raised
        with self._state:
            self._current = None
        notify(job.loop, lambda: job.finish(result, error))

    def abandon(self, job: _Job) -> bool:
        """Ends the thread as soon as it is back in Python code; False when it is no longer busy with `job`.

        The lock makes sure that the thread takes no other job once the exception is under way.
        """
        with self._state:
            if self._current is not job or self.ident is None:
                return False
            self._abandoned = True
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(self.ident), ctypes.py_object(_Stop))
            return True


class TransformRunner:
    """`workers` threads, started when first needed."""

    def __init__(self, workers: int = 2) -> None:
        self._size = workers
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._workers: list[_Worker] = []
        self._stuck: list[_Worker] = []

    async def run(self, call: Callable[[], _T], timeout_seconds: float, what: str) -> _T:
        """The result of `call`. DeadlineExceeded after the timeout; Unavailable while too many calls hang."""
        self._staff()
        job = _Job(call, asyncio.get_running_loop())
        self._jobs.put(job)
        timer = job.loop.call_later(timeout_seconds, self._give_up, job, timeout_seconds, what)
        try:
            result: _T = await job.done
        finally:
            if not job.done.cancelled():  # a caller that left may leave a call that hangs: its thread is still watched
                timer.cancel()
        return result

    def close(self) -> None:
        """Tells idle threads to end; hung ones are daemons and do not hold the process."""
        for _ in self._workers:
            self._jobs.put(None)
        self._workers.clear()

    def _staff(self) -> None:
        """Enough threads that can work."""
        self._stuck = [each for each in self._stuck if each.is_alive()]
        if len(self._stuck) >= _MOST_STUCK:
            raise Unavailable(f"{len(self._stuck)} transform calls hang; restart the service or mend the transform")
        while len(self._workers) < self._size:
            worker = _Worker(self._jobs, f"treadle-transform-{len(self._workers)}")
            self._workers.append(worker)
            worker.start()

    def _give_up(self, job: _Job, timeout_seconds: float, what: str) -> None:
        state = "did not answer" if job.thread is not None else "waited for a free thread, all busy with others,"
        job.finish(None, DeadlineExceeded(f"the transforms of {what} {state} for {timeout_seconds:g} s"))
        # Read again: a thread that has taken the job meanwhile is seen here, and one that takes it later lets it be.
        worker = job.thread
        if worker is not None and worker.abandon(job) and worker in self._workers:  # after `close` there are none
            self._workers.remove(worker)
            self._stuck.append(worker)
            if len(self._stuck) < _MOST_STUCK:
                self._staff()
