"""The greedy batcher: whenever the model is idle, it runs the queued requests that fit into one batch.

There is no timer. An idle model runs a single request at once; while it is busy the queue grows, and with it the next
batch. Laws (tested): the result of a request does not depend on the other requests of its batch; a batch holds requests
of one bucket (same tensors, dtypes, row shapes) and at most `max_rows` rows; expired and cancelled requests are not
computed; a batch that fails is bisected until only the requests that fail alone have failed.

All state belongs to the event loop. Batches run on the model's thread and return their results to the loop; batches
that are expected to take microseconds run on the loop itself (see `latency_model`).
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
from treadle.inference.api.admission import ModelAdmission, ModelLimits
from treadle.inference.batching.batch import (
    InferenceBatch,
    InferenceResult,
    QueuedRequest,
    RawInputs,
    bucket_key,
    concatenate_inputs,
    concatenate_results,
    slice_rows,
)
from treadle.inference.batching.latency_model import LatencyModel
from treadle.inference.batching.model_thread import ModelThread
from treadle.plugins.errors import BackendFault
from treadle.plugins.tensors import Tensors

Predict = Callable[[Tensors, int], Tensors]
"""Maps inputs of N rows, and N, to validated outputs of N rows. Raises BackendFault if the model fails."""


@dataclass(frozen=True, slots=True)
class BatchListener:
    """Callbacks of a batcher."""

    around_batch: Callable[[InferenceBatch], AbstractContextManager[object]]
    """A context manager around the execution of each batch, entered on the thread that runs it."""
    batch_completed: Callable[[InferenceBatch, float], None]
    """Called after the requests of a batch have their results, with that time on the batcher's clock."""
    model_hung: Callable[[str], None]
    """Called with the reason when a hung model is abandoned."""


class Batcher:
    """Queues and runs the requests of one model version. Created and used on one event loop."""

    def __init__(
        self,
        name: str,
        predict: Predict,
        thread: ModelThread,
        limits: ModelLimits,
        listener: BatchListener,
        *,
        bounded: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`bounded`: whether the model cannot hang, whatever the values."""
        self._name = name
        self._predict = predict
        self._thread = thread
        self._limits = limits
        self._listener = listener
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._latency = LatencyModel(bounded=bounded)
        self._admission = ModelAdmission(name, limits, self._latency, clock)
        self._ids = itertools.count(1)
        self._unavailable_reason = ""
        self._queue: deque[QueuedRequest] = deque()
        self._queued_rows = 0
        self._current_requests: Sequence[QueuedRequest] = ()
        """Requests of the batch in execution; empty while idle."""
        self._running_batch: InferenceBatch | None = None
        """The batch in execution, or after a failure the part of it that runs now."""
        self._start_scheduled = False
        self._hang_timer: asyncio.TimerHandle | None = None
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def queued_rows(self) -> int:
        """Rows in the queue, without those in execution."""
        return self._queued_rows

    def admit(self, deadline: float | None) -> None:
        """Refuses a request that cannot be served in time, before it is decoded.

        Unavailable: the model is being unloaded, or hangs. Overloaded: the queue is full, or would take longer than
        until `deadline` (on `clock`). DeadlineExceeded: the deadline has passed.
        """
        if self._unavailable_reason:
            raise Unavailable(self._unavailable_reason)
        self._admission.check(self._queued_rows, self._running_batch, deadline)

    async def submit(
        self, inputs: Tensors, rows: int, *, deadline: float | None = None, context: object = None
    ) -> InferenceResult:
        """The result for `rows` rows of arrays, which must have passed the signature's check.

        `context` is passed on to the listener. A request of more than `max_rows` rows is split over several batches.
        Errors as `admit` and `result`.
        """
        self.admit(deadline)
        bucket, size = bucket_key(inputs), self._limits.max_rows
        if rows <= size:
            return await self.result(self.enqueue(inputs, rows, bucket, deadline, context))
        requests = [
            self.enqueue(slice_rows(inputs, at, at + size), min(size, rows - at), bucket, deadline, context)
            for at in range(0, rows, size)
        ]
        try:
            return concatenate_results([await request.future for request in requests])
        finally:
            self._cancel_queued(requests)

    def enqueue(
        self, inputs: Tensors | RawInputs, rows: int, bucket: object, deadline: float | None, context: object
    ) -> QueuedRequest:
        """Queues an admitted request of at most `max_rows` rows; `bucket` as in `QueuedRequest`."""
        request = QueuedRequest(inputs, rows, bucket, deadline, context, self._clock(), self._loop.create_future())
        self._admission.limit.acquire_unchecked(rows)
        self._queue.append(request)
        self._queued_rows += rows
        if not self._start_scheduled and not self._current_requests:
            # Scheduled after the other requests of this loop iteration, which so join the batch.
            self._start_scheduled = True
            self._loop.call_soon(self._start_next_batch)
        return request

    async def result(self, request: QueuedRequest) -> InferenceResult:
        """The result of a queued request; cancelling the caller removes the request from the queue.

        DeadlineExceeded: the deadline passed in the queue. Unavailable: the model hangs. BackendFault: the model failed
        on these rows. InvalidInput: the rows are invalid, or the model refuses them.
        """
        try:
            return await request.future
        except asyncio.CancelledError:
            self._cancel_queued([request])
            raise

    async def drain(self) -> None:
        """Refuses new requests and waits until all accepted requests are completed."""
        self._unavailable_reason = self._unavailable_reason or f"model {self._name} is being unloaded"
        while self._queue or self._current_requests:
            self._idle.clear()
            await self._idle.wait()
        if self._hang_timer is not None:  # its reference would keep the model in memory
            self._hang_timer.cancel()

    def _cancel_queued(self, requests: Sequence[QueuedRequest]) -> None:
        """Cancels requests whose caller was cancelled, and frees their place in the queue."""
        for request in requests:
            request.future.cancel()
            if not request.future.cancelled():
                request.future.exception()  # marks it retrieved: the caller gets the first error of a split request
            if request.is_queued:
                self._drop(request)

    def _drop(self, request: QueuedRequest) -> None:
        """Marks a request as removed; `_form_batch` skips it, which is cheaper than searching the queue."""
        request.is_queued = False
        self._queued_rows -= request.rows
        self._admission.limit.release_unmeasured(request.rows)

    def _start_next_batch(self) -> None:
        """Starts the next batch, unless the queue is empty."""
        self._start_scheduled = False
        requests, rows = self._form_batch()
        if not requests:
            self._idle.set()
            return
        self._current_requests = requests
        batch = self._begin_batch(requests, rows)
        if self._latency.is_quick(rows):
            for part, error in self._run_with_bisection(batch):
                self._complete_requests(part, error)
            self._finish_batch()
        else:
            if self._hang_timer is None:
                self._hang_timer = self._loop.call_later(self._limits.predict_seconds, self._check_for_hang)
            self._thread.post(partial(self._run_batch, batch))

    def _form_batch(self) -> tuple[list[QueuedRequest], int]:
        """Takes the oldest request and all later ones of its bucket that fit; returns them and their rows."""
        now, max_rows = self._clock(), self._limits.max_rows
        taken, left, rows, bucket, full = list[QueuedRequest](), deque[QueuedRequest](), 0, None, False
        for request in self._queue:
            if not request.is_queued:
                continue
            if request.deadline is not None and request.deadline <= now:
                self._drop(request)
                _fail(request, DeadlineExceeded("the deadline passed while the request waited"))
            elif taken and (full or request.bucket != bucket or rows + request.rows > max_rows):
                # A request that does not fit closes the batch, so that no later request overtakes it.
                full = full or request.bucket == bucket
                left.append(request)
            else:
                bucket, request.is_queued = request.bucket, False
                taken.append(request)
                rows += request.rows
        self._queue = left
        self._queued_rows -= rows
        return taken, rows

    def _begin_batch(self, requests: Sequence[QueuedRequest], rows: int) -> InferenceBatch:
        self._running_batch = batch = InferenceBatch(next(self._ids), requests, rows, self._clock())
        return batch

    # The next four methods run on the model's thread, or for quick batches on the loop.

    def _run_batch(self, batch: InferenceBatch) -> None:
        for part, error in self._run_with_bisection(batch):
            notify(self._loop, partial(self._complete_requests, part, error))
        # Queued after the results, so that the loop sends responses and receives requests before the next batch starts.
        # A model that holds the GIL would otherwise block both, and its next batch would be small.
        notify(self._loop, self._finish_batch)

    def _run_with_bisection(self, batch: InferenceBatch) -> Iterator[tuple[InferenceBatch, BaseException | None]]:
        """Yields the batch with its outputs; if it fails, the halves that succeed and the single requests that fail."""
        try:
            inputs = self._concatenate_inputs(batch)
            with self._listener.around_batch(batch):
                self._compute(batch, inputs)
        except BaseException as error:  # a backend may raise anything
            if len(batch.requests) == 1:
                yield batch, error
                return
            middle = len(batch.requests) // 2
            for half in (batch.requests[:middle], batch.requests[middle:]):
                wanted = [request for request in half if not request.future.done()]
                if wanted:
                    yield from self._run_with_bisection(
                        self._begin_batch(wanted, sum(request.rows for request in wanted))
                    )
        else:
            yield batch, None

    def _concatenate_inputs(self, batch: InferenceBatch) -> Tensors:
        inputs = concatenate_inputs(batch.requests, batch.rows)
        batch.input_seconds = self._clock() - batch.started_at
        return inputs

    def _compute(self, batch: InferenceBatch, inputs: Tensors) -> None:
        began, cpu = self._clock(), time.thread_time()
        try:
            batch.outputs = self._predict(inputs, batch.rows)
        finally:
            batch.infer_seconds = self._clock() - began
            self._latency.record(batch.rows, batch.infer_seconds, time.thread_time() - cpu)

    # The remaining methods run on the loop.

    def _complete_requests(self, batch: InferenceBatch, error: BaseException | None) -> None:
        if not self._current_requests:  # the model was abandoned meanwhile
            return
        now, first_row, total_seconds = self._clock(), 0, 0.0
        for request in batch.requests:
            total_seconds += request.rows * (now - request.queued_at)
            if error is not None:
                _fail(request, _to_backend_error(self._name, error))
            elif not request.future.done():
                request.future.set_result(
                    InferenceResult(batch, first_row, request.rows, batch.started_at - request.queued_at)
                )
            first_row += request.rows
        if error is not None:
            self._admission.limit.release_unmeasured(batch.rows)
            return
        self._admission.batch_completed(batch.rows, total_seconds / batch.rows)
        # Scheduled after the callers, which the futures have woken.
        self._loop.call_soon(self._listener.batch_completed, batch, now)

    def _finish_batch(self) -> None:
        """Called when all parts of a batch are completed."""
        self._current_requests, self._running_batch = (), None
        if self._queue:
            self._start_scheduled = True
            self._loop.call_soon(self._start_next_batch)
        else:
            self._idle.set()

    def _check_for_hang(self) -> None:
        """Abandons the model if its batch exceeds `predict_seconds`; otherwise checks again when it would."""
        self._hang_timer = None
        running = self._running_batch
        if running is None:
            return
        due = running.started_at + self._limits.predict_seconds - self._clock()
        if due > 0:
            self._hang_timer = self._loop.call_later(due, self._check_for_hang)
        else:
            self._abandon_model()

    def _abandon_model(self) -> None:
        """Fails all requests. The thread cannot be ended; it is left behind as a daemon."""
        self._unavailable_reason = (
            f"model {self._name} hangs: a batch took over {self._limits.predict_seconds:g} s; "
            "its thread was abandoned; unload and load the model again"
        )
        for request in (*self._current_requests, *self._queue):
            _fail(request, Unavailable(self._unavailable_reason))
        self._queue.clear()
        self._queued_rows = 0
        self._current_requests, self._running_batch = (), None
        self._idle.set()
        self._listener.model_hung(self._unavailable_reason)


def _fail(request: QueuedRequest, error: TreadleError) -> None:
    if not request.future.done():
        request.future.set_exception(error)


def _to_backend_error(name: str, error: BaseException) -> TreadleError:
    if isinstance(error, InvalidInput):
        return error
    if isinstance(error, BackendFault):
        wrapped = BackendFault(f"model {name}: {error.message}")
    else:
        # The text of the error may contain values of the request; its type does not.
        wrapped = BackendFault(f"model {name} raised {type(error).__name__}")
    wrapped.__cause__ = error
    return wrapped
