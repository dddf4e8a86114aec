"""Execution of transforms on a few worker threads, so that a transform that hangs fails only its own request.

A call that hangs keeps its thread. The runner raises an exception in that thread (which ends Python loops, but not
waits in C code), starts another thread in its place, and refuses new calls only while too many threads are stuck.
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
_MAX_STUCK_THREADS: Final = 16


class _StopThread(BaseException):
    """Raised inside a hung transform. Not an Exception, so that user code does not swallow it by accident."""


class _TransformCall:
    """One queued or running call: the event loop that awaits it, and the thread that runs it."""

    def __init__(self, call: Callable[[], Any], loop: asyncio.AbstractEventLoop) -> None:
        self.call = call
        self.loop = loop
        self.done: asyncio.Future[Any] = loop.create_future()
        self.thread: _TransformThread | None = None

    def finish(self, result: Any, error: BaseException | None) -> None:
        """Resolves the future; called on the event loop. Later calls are ignored."""
        if self.done.done():
            return
        if error is None:
            self.done.set_result(result)
        else:
            self.done.set_exception(error)


class _TransformThread(threading.Thread):
    def __init__(self, jobs: "SimpleQueue[_TransformCall | None]", name: str) -> None:
        super().__init__(name=name, daemon=True)
        self._calls = jobs
        self._state = threading.Lock()
        self._current: _TransformCall | None = None
        self._abandoned = False

    def run(self) -> None:
        """Runs queued calls until the thread is abandoned, or gets None from the queue."""
        try:
            while not self._abandoned:
                job = self._calls.get()
                if job is None:
                    return
                self._run_call(job)
        except _StopThread:
            return

    def _run_call(self, job: _TransformCall) -> None:
        with self._state:
            self._current = job
            job.thread = self
        result, error = None, None
        try:
            if not job.done.done():  # otherwise the caller has timed out or was cancelled
                result = job.call()
        except Exception as raised:  # reported to the caller
            error = raised
        with self._state:
            self._current = None
        notify(job.loop, lambda: job.finish(result, error))

    def abandon(self, job: _TransformCall) -> bool:
        """Ends the thread as soon as it is back in Python code; False when it no longer runs `job`.

        The lock makes sure that the thread takes no other call once the exception has been scheduled.
        """
        with self._state:
            if self._current is not job or self.ident is None:
                return False
            self._abandoned = True
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(self.ident), ctypes.py_object(_StopThread))
            return True


class TransformRunner:
    """A pool of `workers` threads, which are started by the first call."""

    def __init__(self, workers: int = 2) -> None:
        self._size = workers
        self._calls: SimpleQueue[_TransformCall | None] = SimpleQueue()
        self._workers: list[_TransformThread] = []
        self._stuck: list[_TransformThread] = []

    async def run(self, call: Callable[[], _T], timeout_seconds: float, what: str) -> _T:
        """The result of `call`; `what` names its feature service in errors.

        DeadlineExceeded after the timeout; Unavailable while too many calls hang. What `call` raises passes through.
        """
        self._ensure_workers()
        job = _TransformCall(call, asyncio.get_running_loop())
        self._calls.put(job)
        timer = job.loop.call_later(timeout_seconds, self._abandon, job, timeout_seconds, what)
        try:
            result: _T = await job.done
        finally:
            if not job.done.cancelled():  # the call of a cancelled request may hang: its thread must still time out
                timer.cancel()
        return result

    def close(self) -> None:
        """Ends idle threads; stuck ones are daemons and do not keep the process alive."""
        for _ in self._workers:
            self._calls.put(None)
        self._workers.clear()

    def _ensure_workers(self) -> None:
        """Starts threads until `workers` are usable. Unavailable when too many are stuck."""
        self._stuck = [each for each in self._stuck if each.is_alive()]
        if len(self._stuck) >= _MAX_STUCK_THREADS:
            raise Unavailable(f"{len(self._stuck)} transform calls hang; restart the service or mend the transform")
        while len(self._workers) < self._size:
            worker = _TransformThread(self._calls, f"treadle-transform-{len(self._workers)}")
            self._workers.append(worker)
            worker.start()

    def _abandon(self, job: _TransformCall, timeout_seconds: float, what: str) -> None:
        state = "did not answer" if job.thread is not None else "waited for a free thread, all busy with others,"
        job.finish(None, DeadlineExceeded(f"the transforms of {what} {state} for {timeout_seconds:g} s"))
        # Read after `finish`: a thread that took the call before is seen here; one that takes it later skips it.
        worker = job.thread
        if worker is not None and worker.abandon(job) and worker in self._workers:  # `close` empties the list
            self._workers.remove(worker)
            self._stuck.append(worker)
            if len(self._stuck) < _MAX_STUCK_THREADS:
                self._ensure_workers()
