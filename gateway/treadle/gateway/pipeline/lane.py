"""The requests of one key that are about: those that are out in calls, and those that wait for the next.

Who leaves when, and who hears that its time is over. What a call does is the coalescer's business.
"""

import asyncio
import contextvars
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any, Generic, TypeVar

from opentelemetry.trace import SpanContext

from treadle.core.errors import DeadlineExceeded, TreadleError, Unavailable

RequestT = TypeVar("RequestT")
AnswerT = TypeVar("AnswerT")
_LINGER_SECONDS = 0.002


@dataclass(frozen=True, slots=True)
class CoalesceLimits:
    """What may leave together, and when."""

    rows: int = 256
    """Rows of one call; a request that has more goes alone."""
    calls: int = 1
    """Calls of one key that may be out before requests wait."""
    patience_seconds: float = 0.02
    """A call that takes longer holds no place any more: one that hangs must not hold up those behind it."""


@dataclass(eq=False, slots=True)
class Waiter(Generic[RequestT, AnswerT]):
    """A request whose caller waits."""

    request: RequestT
    rows: int
    deadline: float
    future: "asyncio.Future[AnswerT]"
    context: contextvars.Context
    span: SpanContext

    def succeed(self, answer: AnswerT) -> None:
        """Gives the answer to the caller."""
        if not self.future.done():
            self.future.set_result(answer)

    def fail(self, error: BaseException) -> None:
        """Gives the error to the caller, as an object of its own: each raises it with its own traceback."""
        if self.future.done():
            return
        if isinstance(error, TreadleError):
            own = error.clone()
            own.__cause__ = error
            self.future.set_exception(own)
        elif isinstance(error, asyncio.CancelledError):
            self.future.set_exception(Unavailable("the call that this request was part of was cancelled; try again"))
        else:
            self.future.set_exception(error)

    def expire(self, now: float) -> bool:
        """Tells the caller if its time is over; whether nobody waits here any more."""
        if self.deadline <= now:
            self.fail(DeadlineExceeded("the time was over before the answer came"))
        return self.future.done()


@dataclass(eq=False, slots=True)
class Out(Generic[RequestT, AnswerT]):
    """A call that is out. Without a task it is made by a caller itself, for itself alone."""

    started: float
    waiters: Sequence[Waiter[RequestT, AnswerT]] = ()
    task: "asyncio.Task[None] | None" = None
    holds_place: bool = True

    def end_if_deserted(self) -> None:
        """Gives up what nobody waits for."""
        if self.task is not None and all(waiter.future.done() for waiter in self.waiters):
            self.task.cancel()


class Lane(Generic[RequestT, AnswerT]):
    """`answer(waiters)` makes a call and gives each its answer; `closed()` is told when nothing is about any more."""

    def __init__(
        self,
        limits: CoalesceLimits,
        clock: Callable[[], float],
        answer: Callable[[Sequence[Waiter[RequestT, AnswerT]]], Coroutine[Any, Any, None]],
        closed: Callable[[], None],
    ) -> None:
        self._limits = limits
        self._clock = clock
        self._answer = answer
        self._closed = closed
        self._out: list[Out[RequestT, AnswerT]] = []
        self._waiting: deque[Waiter[RequestT, AnswerT]] = deque()
        self._leaving = False
        self._timer: asyncio.TimerHandle | None = None
        self._rings_at = inf

    def begin(
        self,
        waiters: Sequence[Waiter[RequestT, AnswerT]] = (),
        task: "asyncio.Task[None] | None" = None,
    ) -> Out[RequestT, AnswerT]:
        """A call goes out."""
        out = Out(self._clock(), waiters, task)
        self._out.append(out)
        return out

    def end(self, out: Out[RequestT, AnswerT]) -> None:
        """It has come back. What waits leaves behind whatever else arrives in this turn of the loop."""
        self._out.remove(out)
        if self._waiting:
            self._leave_soon()
        elif not self._out:
            self._linger(len(out.waiters) > 1)

    @property
    def is_waited_for(self) -> bool:
        """Whether requests wait."""
        return bool(self._waiting)

    def wait(self, waiter: Waiter[RequestT, AnswerT], *, first: bool = False) -> None:
        """A request comes to wait; it leaves as soon as there is a place. `first`: it was here before the others."""
        if first:
            self._waiting.appendleft(waiter)
        else:
            self._waiting.append(waiter)
        self._ring(waiter.deadline)
        if self._has_place():
            self._leave_soon()
        else:
            self._ring(self._patience_ends())

    def desert(self, waiter: Waiter[RequestT, AnswerT]) -> None:
        """The caller is gone."""
        if waiter in self._waiting:
            self._waiting.remove(waiter)
        if not waiter.future.cancelled():
            waiter.future.exception()  # seen: the answer came when the caller had just gone
        for out in self._out:
            out.end_if_deserted()

    def _has_place(self) -> bool:
        return sum([out.holds_place for out in self._out]) < self._limits.calls

    def _leave_soon(self) -> None:
        """At the end of this turn of the loop, so that all that arrives in it goes together."""
        if not self._leaving:
            self._leaving = True
            asyncio.get_running_loop().call_soon(self._leave)

    def _leave(self) -> None:
        """What waits leaves, as far as there are places."""
        self._leaving = False
        while self._waiting and self._has_place():
            waiters = self._next()
            if waiters:
                self._start(waiters)
        if not self._out and not self._waiting:
            self._linger(False)

    def _linger(self, crowded: bool) -> None:
        """Nothing is about. Where there has just been a crowd, what comes next waits for those beside it."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self._rings_at = None, inf
        if crowded:
            self._ring(self._clock() + _LINGER_SECONDS)
        elif not self._leaving:
            self._closed()

    def _next(self) -> list[Waiter[RequestT, AnswerT]]:
        """Those that go together: the oldest, and those behind it as long as they fit. None overtakes another."""
        taken: list[Waiter[RequestT, AnswerT]] = []
        rows, now = 0, self._clock()
        while self._waiting and (not taken or rows + self._waiting[0].rows <= self._limits.rows):
            waiter = self._waiting.popleft()
            if not waiter.expire(now):
                taken.append(waiter)
                rows += waiter.rows
        return taken

    def _start(self, waiters: Sequence[Waiter[RequestT, AnswerT]]) -> None:
        async def run() -> None:
            try:
                await self._answer(waiters)
            finally:
                self.end(out)

        out = self.begin(waiters)
        out.task = started(run(), waiters)

    def _patience_ends(self) -> float:
        """When the first of the calls that hold a place has been out for too long."""
        return min([out.started for out in self._out if out.holds_place], default=inf) + self._limits.patience_seconds

    def _ring(self, at: float) -> None:
        """Looks at the clock at that moment, or sooner."""
        if at < self._rings_at:
            if self._timer is not None:
                self._timer.cancel()
            self._rings_at = at
            delay = max(0.0, at - self._clock())
            self._timer = asyncio.get_running_loop().call_later(delay, self._look_at_clock)

    def _look_at_clock(self) -> None:
        """Tells those whose time is over, and takes their places from calls that take too long."""
        self._timer, self._rings_at = None, inf
        now = self._clock()
        self._waiting = deque([waiter for waiter in self._waiting if not waiter.expire(now)])
        moments = [waiter.deadline for out in self._out for waiter in out.waiters if not waiter.expire(now)]
        for out in self._out:
            out.holds_place = out.holds_place and now < out.started + self._limits.patience_seconds
            out.end_if_deserted()
        self._leave()
        moments += [waiter.deadline for waiter in self._waiting]
        if self._waiting:
            moments.append(self._patience_ends())
        if moments:
            self._ring(min(moments))


def started(work: Coroutine[Any, Any, None], waiters: Sequence[Waiter[RequestT, AnswerT]]) -> "asyncio.Task[None]":
    """The work as a task in the context of one of those that it is for."""
    return asyncio.get_running_loop().create_task(work, context=leader(waiters).context)


def leader(waiters: Sequence[Waiter[RequestT, AnswerT]]) -> Waiter[RequestT, AnswerT]:
    """The first that is traced, else the first."""
    return next((waiter for waiter in waiters if waiter.span.trace_flags.sampled), waiters[0])
