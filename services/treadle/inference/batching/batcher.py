"""The greedy batcher: whenever the model is free, it takes everything that waits and fits.

There is no timer. An idle model answers a lone request at once; a busy one finds more waiting each time it comes
back, so that batches grow by themselves. Laws (tested): what a caller gets does not depend on its neighbours; a batch
holds requests of one bucket (same tensors, dtypes, row shapes) and at most `max_rows` rows; late and cancelled requests
are not computed; if a batch fails it is halved until only the requests that fail alone have failed.

All state is the event loop's. The model's thread is handed a batch and hands its answers back; batches that are known
to take microseconds are not even handed over, but run on the loop (see `pace`).
"""

import asyncio
import itertools
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial

from treadle.core.errors import DeadlineExceeded, InvalidInput, TreadleError, Unavailable
from treadle.core.tasks import notify
from treadle.inference.api.admission import Admission, Limits
from treadle.inference.batching.batch import Answer, Batch, Job, Raws, bucket_of, cut, gathered, joined
from treadle.inference.batching.latency_model import Pace
from treadle.inference.batching.worker import Worker
from treadle.plugins.errors import BackendFault
from treadle.plugins.tensors import Tensors

Predict = Callable[[Tensors, int], Tensors]
"""Outputs for the inputs and their number of rows; checked: N rows each. Raises BackendFault if the model broke."""


@dataclass(frozen=True, slots=True)
class Watching:
    """Who is told what."""

    batch: Callable[[Batch], AbstractContextManager[object]]
    """Around each batch, wherever it runs."""
    answered: Callable[[Batch, float], None]
    """After the requests of a batch have their answers; with the moment of that, on the batcher's clock."""
    hangs: Callable[[str], None]
    """When the model was given up, and why."""


class Batcher:
    """Runs the requests of one model version on its worker. Made and used on one event loop."""

    def __init__(
        self,
        name: str,
        predict: Predict,
        worker: Worker,
        limits: Limits,
        watching: Watching,
        *,
        bounded: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`bounded`: whether the model cannot hang, whatever the values."""
        self._name = name
        self._predict = predict
        self._worker = worker
        self._limits = limits
        self._watching = watching
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._pace = Pace(bounded=bounded)
        self._admission = Admission(name, limits, self._pace, clock)
        self._ids = itertools.count(1)
        self._refusal = ""
        self._waiting: deque[Job] = deque()
        self._waiting_rows = 0
        self._taken: Sequence[Job] = ()
        """Jobs of the batch that runs."""
        self._running: Batch | None = None
        """That batch, or the part of it that runs now."""
        self._woken = False
        self._watch: asyncio.TimerHandle | None = None
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def waiting_rows(self) -> int:
        """Rows in the queue, not counting those being computed."""
        return self._waiting_rows

    def admit(self, deadline: float | None) -> None:
        """Refuses what has no chance, before anything is spent on it.

        Unavailable: the model is going away, or hangs. Overloaded: too much is here already, or what is here takes
        longer than until `deadline` (on `clock`). DeadlineExceeded: that has passed.
        """
        if self._refusal:
            raise Unavailable(self._refusal)
        self._admission.check(self._waiting_rows, self._running, deadline)

    async def submit(
        self, inputs: Tensors, rows: int, *, deadline: float | None = None, context: object = None
    ) -> Answer:
        """The outputs for `rows` rows of arrays, which must have passed the signature's check.

        Raises what `admit` and `outcome` do.
        """
        self.admit(deadline)
        bucket, size = bucket_of(inputs), self._limits.max_rows
        if rows <= size:
            return await self.outcome(self.enqueue(inputs, rows, bucket, deadline, context))
        jobs = [
            self.enqueue(cut(inputs, at, at + size), min(size, rows - at), bucket, deadline, context)
            for at in range(0, rows, size)
        ]
        try:
            return joined([await job.future for job in jobs])
        finally:
            self._forget(jobs)

    def enqueue(
        self, inputs: Tensors | Raws, rows: int, bucket: object, deadline: float | None, context: object
    ) -> Job:
        """Queues what was admitted and fits one batch: arrays with their `bucket_of`, or bytes with their `Layout`."""
        job = Job(inputs, rows, bucket, deadline, context, self._clock(), self._loop.create_future())
        self._admission.limit.acquire_unchecked(rows)
        self._waiting.append(job)
        self._waiting_rows += rows
        if not self._woken and not self._taken:
            # Behind whatever else has arrived in this turn of the loop, which so joins the batch.
            self._woken = True
            self._loop.call_soon(self._next)
        return job

    async def outcome(self, job: Job) -> Answer:
        """The answer to what was queued; a caller who goes away takes it out of the queue.

        DeadlineExceeded: the deadline passed before it was computed. Unavailable: the model hangs. BackendFault: it
        failed on these rows. InvalidInput: the rows are wrong, or the model said that it cannot take them.
        """
        try:
            return await job.future
        except asyncio.CancelledError:
            self._forget([job])
            raise

    async def drain(self) -> None:
        """Refuses new requests and waits until those accepted are answered."""
        self._refusal = self._refusal or f"model {self._name} is being unloaded"
        while self._waiting or self._taken:
            self._idle.clear()
            await self._idle.wait()
        if self._watch is not None:  # it would keep the model in memory
            self._watch.cancel()

    def _forget(self, jobs: Sequence[Job]) -> None:
        """Takes requests whose caller has gone out of the queue, so that they hold no place in it."""
        for job in jobs:
            job.future.cancel()
            if not job.future.cancelled():
                job.future.exception()  # seen: the caller gets the first error of an oversize request
            if job.waits:
                self._give_up(job)

    def _give_up(self, job: Job) -> None:
        """`_next` passes over it: looking for it in the queue would cost more."""
        job.waits = False
        self._waiting_rows -= job.rows
        self._admission.limit.release_unmeasured(job.rows)

    def _next(self) -> None:
        """Begins with the next batch, if anything waits."""
        self._woken = False
        jobs, rows = self._take()
        if not jobs:
            self._idle.set()
            return
        self._taken = jobs
        batch = self._begun(jobs, rows)
        if self._pace.is_quick(rows):
            for part, error in self._results(batch):
                self._settle(part, error)
            self._free()
        else:
            if self._watch is None:
                self._watch = self._loop.call_later(self._limits.predict_seconds, self._check)
            self._worker.post(partial(self._work, batch))

    def _take(self) -> tuple[list[Job], int]:
        """The next batch: the oldest request, and all of its bucket behind it that fit; and its rows."""
        now, most = self._clock(), self._limits.max_rows
        taken, left, rows, bucket, full = list[Job](), deque[Job](), 0, None, False
        for job in self._waiting:
            if not job.waits:
                continue
            if job.deadline is not None and job.deadline <= now:
                self._give_up(job)
                _fail(job, DeadlineExceeded("the deadline passed while the request waited"))
            elif taken and (full or job.bucket != bucket or rows + job.rows > most):
                # A request that does not fit closes the batch: none behind it may overtake it.
                full = full or job.bucket == bucket
                left.append(job)
            else:
                bucket, job.waits = job.bucket, False
                taken.append(job)
                rows += job.rows
        self._waiting = left
        self._waiting_rows -= rows
        return taken, rows

    def _begun(self, jobs: Sequence[Job], rows: int) -> Batch:
        self._running = batch = Batch(next(self._ids), jobs, rows, self._clock())
        return batch

    # On the worker's thread, or for quick batches on the loop, from here …

    def _work(self, batch: Batch) -> None:
        for part, error in self._results(batch):
            notify(self._loop, partial(self._settle, part, error))
        # After the answers: the loop sends them, and takes in what has arrived, before the next batch begins. A model
        # that holds the interpreter would otherwise keep it from both, and find next to nothing waiting.
        notify(self._loop, self._free)

    def _results(self, batch: Batch) -> Iterator[tuple[Batch, BaseException | None]]:
        """The batch with its outputs; if it fails, the parts of it that do not, and the single requests that do."""
        try:
            inputs = self._gathered(batch)
            with self._watching.batch(batch):
                self._compute(batch, inputs)
        except BaseException as error:  # a backend may raise anything; it fails its request alone
            if len(batch.jobs) == 1:
                yield batch, error
                return
            middle = len(batch.jobs) // 2
            for half in (batch.jobs[:middle], batch.jobs[middle:]):
                wanted = [job for job in half if not job.future.done()]
                if wanted:
                    yield from self._results(self._begun(wanted, sum(job.rows for job in wanted)))
        else:
            yield batch, None

    def _gathered(self, batch: Batch) -> Tensors:
        inputs = gathered(batch.jobs, batch.rows)
        batch.input_seconds = self._clock() - batch.started_at
        return inputs

    def _compute(self, batch: Batch, inputs: Tensors) -> None:
        began, cpu = self._clock(), time.thread_time()
        try:
            batch.outputs = self._predict(inputs, batch.rows)
        finally:
            batch.infer_seconds = self._clock() - began
            self._pace.took(batch.rows, batch.infer_seconds, time.thread_time() - cpu)

    # … to here. The rest is on the loop.

    def _settle(self, batch: Batch, error: BaseException | None) -> None:
        if not self._taken:  # it hung, and was given up
            return
        now, at, time_here = self._clock(), 0, 0.0
        for job in batch.jobs:
            time_here += job.rows * (now - job.queued_at)
            if error is not None:
                _fail(job, _fault(self._name, error))
            elif not job.future.done():
                job.future.set_result(Answer(batch, at, job.rows, batch.started_at - job.queued_at))
            at += job.rows
        if error is not None:
            self._admission.limit.release_unmeasured(batch.rows)
            return
        self._admission.answered(batch.rows, time_here / batch.rows)
        # The callers, whom the futures have woken, come first.
        self._loop.call_soon(self._watching.answered, batch, now)

    def _free(self) -> None:
        """The batch has been answered, each part of it."""
        self._taken, self._running = (), None
        if self._waiting:
            self._woken = True
            self._loop.call_soon(self._next)
        else:
            self._idle.set()

    def _check(self) -> None:
        """Looks whether the model hangs; runs while it works."""
        self._watch = None
        running = self._running
        if running is None:
            return
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
        for job in (*self._taken, *self._waiting):
            _fail(job, Unavailable(self._refusal))
        self._waiting.clear()
        self._waiting_rows = 0
        self._taken, self._running = (), None
        self._idle.set()
        self._watching.hangs(self._refusal)


def _fail(job: Job, error: TreadleError) -> None:
    if not job.future.done():
        job.future.set_exception(error)


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
