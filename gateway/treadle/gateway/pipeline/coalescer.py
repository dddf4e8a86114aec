"""Requests of one kind are asked together: while a call is out, those that come wait, and leave as one call.

There is no timer that holds anything back. A request that finds no call of its kind out leaves at the end of this turn
of the loop, with those that arrived in it, or alone in its caller's own task; when a call comes back, whatever waits
leaves. Laws (tested): what a caller gets does not depend on its neighbours; a call holds requests of one key, in the
order in which they came, and at most so many rows; a caller whose time is over hears so at once, and rows that nobody
waits for are not asked; a call that fails for what may be one request's fault is halved until only that request fails.
"""

import asyncio
import contextvars
import time
from collections.abc import Awaitable, Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Generic, TypeVar

from opentelemetry import trace
from opentelemetry.trace import Link, Tracer

from treadle.core.errors import (
    Cancelled,
    DeadlineExceeded,
    NotFound,
    Overloaded,
    PermissionDenied,
    TreadleError,
    Unauthenticated,
    Unavailable,
    Unimplemented,
)
from treadle.gateway.pipeline.lane import AnswerT, CoalesceLimits, Lane, RequestT, Waiter, leader, started
from treadle.rpc.context import current, request_scope

KeyT = TypeVar("KeyT", bound=Hashable)

# They tell of the callee, or of what all requests of a key have in common: no request alone would fare better.
EVERYONES = (
    Cancelled,
    DeadlineExceeded,
    NotFound,
    Overloaded,
    PermissionDenied,
    Unauthenticated,
    Unavailable,
    Unimplemented,
)


class Coalescer(Generic[KeyT, RequestT, AnswerT]):
    """Turns requests into calls. Used on one event loop.

    `call(key, requests, timeout)` gives one answer for each request, in order; it runs in the context of one of the
    callers, so a key must hold whatever of a caller's context reaches the callee: tenant, actor.
    """

    def __init__(
        self,
        call: Callable[[KeyT, Sequence[RequestT], float], Awaitable[Sequence[AnswerT]]],
        limits: CoalesceLimits,
        tracer: Tracer,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._call = call
        self._limits = limits
        self._tracer = tracer
        self._clock = clock
        self._lanes: dict[KeyT, Lane[RequestT, AnswerT]] = {}

    async def submit(self, key: KeyT, request: RequestT, rows: int, timeout: float) -> AnswerT:
        """The answer; what the call raised for this request; or DeadlineExceeded after `timeout` seconds."""
        lane = self._lanes.get(key)
        if lane is not None:
            return await self._among_others(lane, request, rows, timeout, first=False)
        lane = Lane(self._limits, self._clock, partial(self._answer, key), partial(self._close, key))
        self._lanes[key] = lane
        out = lane.begin()
        try:
            await asyncio.sleep(0)  # whatever else arrives in this turn of the loop comes along
            if not lane.is_waited_for:  # it is alone, and needs neither a task nor a future
                (found,) = await self._call(key, (request,), timeout)
                return found
        finally:
            lane.end(out)
        return await self._among_others(lane, request, rows, timeout, first=True)

    async def _among_others(
        self, lane: Lane[RequestT, AnswerT], request: RequestT, rows: int, timeout: float, *, first: bool
    ) -> AnswerT:
        waiter: Waiter[RequestT, AnswerT] = Waiter(
            request,
            rows,
            self._clock() + timeout,
            asyncio.get_running_loop().create_future(),
            contextvars.copy_context(),
            trace.get_current_span().get_span_context(),
        )
        lane.wait(waiter, first=first)
        try:
            return await waiter.future
        except asyncio.CancelledError:
            lane.desert(waiter)
            raise

    def _close(self, key: KeyT) -> None:
        del self._lanes[key]

    async def _answer(self, key: KeyT, waiters: Sequence[Waiter[RequestT, AnswerT]]) -> None:
        """Asks for all of them that still wait, and gives to each its own."""
        waiters = [waiter for waiter in waiters if not waiter.future.done()]
        if not waiters:
            return
        try:
            answers = await self._together(key, waiters)
            for waiter, answer in zip(waiters, answers, strict=True):
                waiter.succeed(answer)
        except TreadleError as error:
            if len(waiters) > 1 and not isinstance(error, EVERYONES):
                await self._halved(key, waiters)
            else:
                _fail(waiters, error)
        except BaseException as error:
            _fail(waiters, error)
            if not isinstance(error, Exception):
                raise

    async def _halved(self, key: KeyT, waiters: Sequence[Waiter[RequestT, AnswerT]]) -> None:
        middle = len(waiters) // 2
        halves = (waiters[:middle], waiters[middle:])
        await asyncio.gather(*[started(self._answer(key, half), half) for half in halves])

    async def _together(self, key: KeyT, waiters: Sequence[Waiter[RequestT, AnswerT]]) -> Sequence[AnswerT]:
        """One call for all, with the longest of their deadlines."""
        requests = [waiter.request for waiter in waiters]
        deadline = max([waiter.deadline for waiter in waiters])
        timeout = max(0.0, deadline - self._clock())
        if len(waiters) == 1:
            return await self._call(key, requests, timeout)
        with request_scope(replace(current(), deadline=time.monotonic() + timeout)), self._span(waiters):
            return await self._call(key, requests, timeout)

    @contextmanager
    def _span(self, waiters: Sequence[Waiter[RequestT, AnswerT]]) -> Iterator[None]:
        """Around a call for several: a child of the span in whose context it runs, with links to the others'."""
        parent = leader(waiters)
        if not parent.span.trace_flags.sampled:
            yield
            return
        others = [waiter.span for waiter in waiters if waiter is not parent and waiter.span.trace_flags.sampled]
        with self._tracer.start_as_current_span(
            "treadle.coalesced",
            links=[Link(span) for span in others],
            attributes={
                "treadle.batch.size": sum(waiter.rows for waiter in waiters),
                "treadle.batch.requests": len(waiters),
            },
            record_exception=False,  # its text may hold values
            set_status_on_exception=False,
        ):
            yield


def _fail(waiters: Sequence[Waiter[RequestT, AnswerT]], error: BaseException) -> None:
    for waiter in waiters:
        waiter.fail(error)
