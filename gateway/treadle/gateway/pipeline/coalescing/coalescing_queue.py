"""Queued and in-flight requests of one coalescing key: when the next batch starts, and whose time is over."""

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any

from treadle.core.errors import DeadlineExceeded
from treadle.gateway.pipeline.batch.request_batch import PendingRequest

_KEEP_OPEN_SECONDS = 0.002


@dataclass(frozen=True, slots=True)
class CoalesceLimits:
    """How large batches are, and when they start."""

    rows: int = 256
    """Most rows of one batch; a request that has more is a batch of its own."""
    calls: int = 1
    """Batches of one key that may be in flight before requests queue."""
    slow_call_threshold_seconds: float = 0.005
    """A batch that takes longer no longer counts as in flight, and the next one starts beside it: one that hangs must
    not hold up those behind it, and the features of one are looked up while another's inference runs. Of quick ones,
    one at a time is cheaper, for it is larger."""


@dataclass(eq=False, slots=True)
class InFlightCall:
    """A batch in flight. Without a task it is a lone request, worked on in its caller's own task."""

    started: float
    requests: Sequence[PendingRequest] = ()
    task: "asyncio.Task[None] | None" = None
    counts: bool = True
    """Whether it keeps the next batch from starting."""

    def cancel_if_abandoned(self) -> None:
        """Cancels a batch for whose answers nobody waits any more."""
        if self.task is not None and all(pending.is_done for pending in self.requests):
            self.task.cancel()


class CoalescingQueue:
    """`run(requests)` works on a batch and gives each request its outcome; `idle()` is called when nothing is queued or
    in flight any more. `clock` gives seconds on the event loop's clock."""

    def __init__(
        self,
        limits: CoalesceLimits,
        clock: Callable[[], float],
        run: Callable[[Sequence[PendingRequest]], Coroutine[Any, Any, None]],
        idle: Callable[[], None],
    ) -> None:
        self._limits = limits
        self._clock = clock
        self._run = run
        self._idle = idle
        self._in_flight: list[InFlightCall] = []
        self._queued: deque[PendingRequest] = deque()
        self._is_starting = False
        self._timer: asyncio.TimerHandle | None = None
        self._next_wakeup = inf

    def call_started(self, requests: Sequence[PendingRequest] = ()) -> InFlightCall:
        """Counts a batch as in flight."""
        call = InFlightCall(self._clock(), requests)
        self._in_flight.append(call)
        return call

    def call_finished(self, call: InFlightCall) -> None:
        """The batch has returned. Queued requests start behind whatever else arrives in this turn of the loop."""
        self._in_flight.remove(call)
        if self._queued:
            self._start_soon()
        elif not self._in_flight:
            self._rest(after_batch=len(call.requests) > 1)

    @property
    def has_pending(self) -> bool:
        """Whether requests are queued."""
        return bool(self._queued)

    def put(self, pending: PendingRequest, *, first: bool = False) -> None:
        """Queues a request, before all others if it is the `first`; it starts as soon as a batch may."""
        if first:
            self._queued.appendleft(pending)
        else:
            self._queued.append(pending)
        self._wake_at(pending.deadline)
        if self._may_start():
            self._start_soon()
        else:
            self._wake_at(self._slow_at())

    def abandon(self, pending: PendingRequest) -> None:
        """The caller has left."""
        if pending in self._queued:
            self._queued.remove(pending)
        future = pending.future
        if future is not None and future.done() and not future.cancelled():
            future.exception()  # retrieved: the outcome came when the caller had just left
        for call in self._in_flight:
            call.cancel_if_abandoned()

    def _may_start(self) -> bool:
        return sum([call.counts for call in self._in_flight]) < self._limits.calls

    def _start_soon(self) -> None:
        """At the end of this turn of the loop, so that all requests that arrive in it share a batch."""
        if not self._is_starting:
            self._is_starting = True
            asyncio.get_running_loop().call_soon(self._start)

    def _start(self) -> None:
        """Starts as many batches as may be in flight."""
        self._is_starting = False
        while self._queued and self._may_start():
            requests = self._next_batch()
            if requests:
                self._start_batch(requests)
        if self._queued:
            self._wake_at(self._slow_at())
        elif not self._in_flight:
            self._rest(after_batch=False)

    def _rest(self, *, after_batch: bool) -> None:
        """Nothing is queued or in flight. After a batch the queue stays open for 2 ms, so that the next burst
        coalesces as well."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self._next_wakeup = None, inf
        if after_batch:
            self._wake_at(self._clock() + _KEEP_OPEN_SECONDS)
        elif not self._is_starting:
            self._idle()

    def _next_batch(self) -> list[PendingRequest]:
        """The oldest request, and those behind it as long as they fit. None overtakes another."""
        taken: list[PendingRequest] = []
        rows, now = 0, self._clock()
        while self._queued and (not taken or rows + self._queued[0].weight <= self._limits.rows):
            pending = self._queued.popleft()
            if not _expire(pending, now):
                taken.append(pending)
                rows += pending.weight
        return taken

    def _start_batch(self, requests: Sequence[PendingRequest]) -> None:
        async def run() -> None:
            try:
                await self._run(requests)
            finally:
                self.call_finished(call)

        call = self.call_started(requests)
        call.task = asyncio.get_running_loop().create_task(run(), context=leader_of(requests).caller_context)

    def _slow_at(self) -> float:
        """When the oldest of the batches that count turns slow."""
        oldest = min([call.started for call in self._in_flight if call.counts], default=inf)
        return oldest + self._limits.slow_call_threshold_seconds

    def _wake_at(self, moment: float) -> None:
        """Looks at the clock at that moment, or sooner."""
        if moment < self._next_wakeup:
            if self._timer is not None:
                self._timer.cancel()
            self._next_wakeup = moment
            delay = max(0.0, moment - self._clock())
            self._timer = asyncio.get_running_loop().call_later(delay, self._wake)

    def _wake(self) -> None:
        """Fails requests whose deadline has passed, and stops counting slow batches."""
        self._timer, self._next_wakeup = None, inf
        now = self._clock()
        self._queued = deque([pending for pending in self._queued if not _expire(pending, now)])
        moments = [each.deadline for call in self._in_flight for each in call.requests if not _expire(each, now)]
        for call in self._in_flight:
            call.counts = call.counts and now < call.started + self._limits.slow_call_threshold_seconds
            call.cancel_if_abandoned()
        self._start()
        moments += [pending.deadline for pending in self._queued]
        if moments:
            self._wake_at(min(moments))


def _expire(pending: PendingRequest, now: float) -> bool:
    """Fails the request if its deadline has passed; whether nobody waits for it any more."""
    if pending.deadline <= now and not pending.is_done:
        reasons = "".join([f": {reason}" for reason in pending.failures])
        pending.fail(DeadlineExceeded(f"the deadline passed before the answer came{reasons}"))
    return pending.is_done


def leader_of(requests: Sequence[PendingRequest]) -> PendingRequest:
    """The first request that is traced, else the first."""
    return next((pending for pending in requests if pending.span.trace_flags.sampled), requests[0])
