"""The greedy batcher: whenever the model is free, it takes everything that waits and fits.

There is no timer. An idle model answers a lone request at once; a busy one finds more waiting each time it comes
back, so that batches grow by themselves. Laws (tested): what a caller gets does not depend on its neighbours; a batch
holds requests of one bucket (same tensors, dtypes, row shapes) and at most `max_rows` rows; late and cancelled requests
are not computed; if a batch fails it is halved until only the requests that fail alone have failed.
"""

import asyncio
import itertools
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

from treadle.inference.batch import Answer, Batch, Job, answers_of, bucket_of, cut, gathered, joined
from treadle.inference.worker import Worker
from treadle.plugins.errors import BackendFault
from treadle.plugins.tensors import Tensors
from treadle.rpc.errors import DeadlineExceeded, InvalidInput, Overloaded, TreadleError, Unavailable
from treadle.rpc.tasks import notify

Predict = Callable[[Tensors, int], Tensors]
"""Outputs for the inputs and their number of rows; checked: N rows each. Raises BackendFault if the model broke."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What one model version may hold."""

    max_rows: int = 1024
    """Rows in one batch."""
    queue_rows: int = 16_384
    """Rows that may wait. One request alone may be larger."""
    predict_seconds: float = 30.0
    """A batch that takes longer means that the model hangs."""


@dataclass(slots=True)
class _State:
    """What both threads touch, under `lock`."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    waiting: deque[Job] = field(default_factory=deque)
    rows: int = 0
    active: bool = False
    """Whether the worker is at it, or has been told to be."""


class Batcher:
    """Runs the requests of one model version on its worker. Made and used on one event loop."""

    def __init__(
        self,
        name: str,
        predict: Predict,
        worker: Worker,
        limits: Limits,
        *,
        observe: Callable[[Batch], AbstractContextManager[None]],
        on_hang: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._name = name
        self._predict = predict
        self._worker = worker
        self._limits = limits
        self._observe = observe
        self._on_hang = on_hang
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._state = _State()
        self._ids = itertools.count(1)
        self._refusal = ""
        self._running: Batch | None = None
        self._watch: asyncio.TimerHandle | None = None
        self._outstanding: set[Job] = set()
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def waiting_rows(self) -> int:
        """Rows in the queue, not counting those being computed."""
        return self._state.rows

    async def submit(
        self, inputs: Tensors, rows: int, *, deadline: float | None = None, context: object = None
    ) -> Answer:
        """The outputs for `rows` rows; `inputs` must have passed the signature's check.

        Overloaded: the queue is full. DeadlineExceeded: `deadline` (on `clock`) passed before it was computed.
        Unavailable: the model is going away, or hangs. BackendFault: it failed on these rows. InvalidInput: it said
        that it cannot take them.
        """
        jobs = self._admit(inputs, rows, deadline, context)
        try:
            answers = [await job.future for job in jobs]
        finally:
            if len(jobs) > 1 or jobs[0].future.cancelled():
                self._forget(jobs)
        return answers[0] if len(answers) == 1 else joined(answers)

    async def drain(self) -> None:
        """Refuses new requests and waits until those accepted are answered."""
        self._refusal = self._refusal or f"model {self._name} is being unloaded"
        await self._idle.wait()

    def _admit(self, inputs: Tensors, rows: int, deadline: float | None, context: object) -> list[Job]:
        if self._refusal:
            raise Unavailable(self._refusal)
        now = self._clock()
        if deadline is not None and deadline <= now:
            raise DeadlineExceeded("the deadline passed before the request was computed")
        state, bucket = self._state, bucket_of(inputs)
        size = self._limits.max_rows
        parts = [inputs] if rows <= size else [cut(inputs, at, at + size) for at in range(0, rows, size)]
        jobs = [
            Job(part, min(size, rows - at * size), bucket, deadline, context, now, self._loop.create_future())
            for at, part in enumerate(parts)
        ]
        with state.lock:
            if state.rows and state.rows + rows > self._limits.queue_rows:
                raise Overloaded(
                    f"model {self._name} has {state.rows} rows waiting; {self._limits.queue_rows} is the limit",
                    retry_after_seconds=0.1,
                )
            state.waiting.extend(jobs)
            state.rows += rows
            wake, state.active = not state.active, True
        self._outstanding.update(jobs)
        self._idle.clear()
        if wake:
            # Behind whatever else has arrived in this turn of the loop, which so joins the batch.
            self._loop.call_soon(self._worker.post, self._work)
        if self._watch is None:
            self._watch = self._loop.call_later(self._limits.predict_seconds, self._check)
        return jobs

    def _forget(self, jobs: Sequence[Job]) -> None:
        """Takes requests whose caller has gone out of the queue, so that they hold no place in it."""
        for job in jobs:
            job.future.cancel()
            if job.future.done() and not job.future.cancelled():
                job.future.exception()  # seen: the caller gets the first error of an oversize request
            self._outstanding.discard(job)
        with self._state.lock:
            for job in jobs:
                if job in self._state.waiting:
                    self._state.waiting.remove(job)
                    self._state.rows -= job.rows
        self._settle_idle()

    # On the worker's thread, from here …

    def _work(self) -> None:
        jobs = self._take()
        if jobs:
            self._run(jobs)
            # The loop has a turn between batches: it sends these answers and takes in what has arrived. A model that
            # holds the interpreter would otherwise keep it from both, and find next to nothing waiting.
            notify(self._loop, lambda: self._worker.post(self._work))

    def _take(self) -> list[Job]:
        """The next batch: the oldest request, and all of its bucket behind it that fit. Empty: nothing waits."""
        state, late = self._state, list[Job]()
        with state.lock:
            now = self._clock()
            taken, left, rows, full = list[Job](), deque[Job](), 0, False
            for job in state.waiting:
                if job.future.done():
                    state.rows -= job.rows
                elif job.deadline is not None and job.deadline <= now:
                    state.rows -= job.rows
                    late.append(job)
                elif taken and (job.bucket != taken[0].bucket or full or rows + job.rows > self._limits.max_rows):
                    # A request that does not fit closes the batch: none behind it may overtake it.
                    full = full or job.bucket == taken[0].bucket
                    left.append(job)
                else:
                    taken.append(job)
                    rows += job.rows
            state.waiting = left
            state.rows -= rows
            state.active = bool(taken)
        if late:
            self._deliver([(job, DeadlineExceeded("the deadline passed while the request waited")) for job in late])
        return taken

    def _run(self, jobs: Sequence[Job]) -> None:
        batch = Batch(next(self._ids), jobs, sum(job.rows for job in jobs), self._clock())
        self._running = batch
        try:
            with self._observe(batch):
                outputs = self._compute(batch)
            results = answers_of(batch, outputs)
        except BaseException as error:  # a backend may raise anything; it fails its request alone
            self._running = None
            self._failed(jobs, error)
        else:
            self._running = None
            self._deliver(results)

    def _compute(self, batch: Batch) -> Tensors:
        inputs = gathered(batch.jobs)
        began = self._clock()
        batch.input_seconds = began - batch.started_at
        try:
            return self._predict(inputs, batch.rows)
        finally:
            batch.infer_seconds = self._clock() - began

    def _failed(self, jobs: Sequence[Job], error: BaseException) -> None:
        if len(jobs) == 1:
            self._deliver([(jobs[0], _fault(self._name, error))])
            return
        for half in (jobs[: len(jobs) // 2], jobs[len(jobs) // 2 :]):
            wanted = [job for job in half if not job.future.done()]
            if wanted:
                self._run(wanted)

    def _deliver(self, results: Sequence[tuple[Job, Answer | TreadleError]]) -> None:
        notify(self._loop, lambda: self._settle(results))

    # … to here. The rest is on the loop.

    def _settle(self, results: Sequence[tuple[Job, Answer | TreadleError]]) -> None:
        for job, result in results:
            self._outstanding.discard(job)
            if job.future.done():
                continue
            if isinstance(result, Answer):
                job.future.set_result(result)
            else:
                job.future.set_exception(result)
        self._settle_idle()

    def _settle_idle(self) -> None:
        if not self._outstanding:
            self._idle.set()

    def _check(self) -> None:
        """Looks whether the model hangs; runs while anything is outstanding."""
        self._watch = None
        running = self._running
        if running is None:
            due = self._limits.predict_seconds
            if not self._outstanding:
                return
        else:
            due = running.started_at + self._limits.predict_seconds - self._clock()
        if due > 0:
            self._watch = self._loop.call_later(due, self._check)
        else:
            self._abandon()

    def _abandon(self) -> None:
        """Gives the model up. Its thread cannot be ended: it is left behind, and nobody waits for it."""
        self._refusal = (
            f"model {self._name} hangs: a batch took over {self._limits.predict_seconds:g} s; "
            "its thread was abandoned; unload and load the model again"
        )
        with self._state.lock:
            self._state.waiting.clear()
            self._state.rows = 0
        self._settle([(job, Unavailable(self._refusal)) for job in list(self._outstanding)])
        self._on_hang(self._refusal)


def _fault(name: str, error: BaseException) -> TreadleError:
    if isinstance(error, InvalidInput):
        return error
    if isinstance(error, BackendFault):
        fault = BackendFault(f"model {name}: {error.message}")
    else:
        # The text of a foreign error may hold values of the request; its type does not.
        fault = BackendFault(f"model {name} raised {type(error).__name__}")
    fault.__cause__ = error
    return fault
