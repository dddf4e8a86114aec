"""Concurrent requests of one kind become batches, without a timer.

A lone request is worked on at once, in its caller's own task. While a batch is in flight, further requests of its kind
queue; they become the next batch when it returns, or when it has taken longer than `slow_call_threshold_seconds`. So
batches grow with the load by themselves, and an idle gateway adds no delay.
"""

import asyncio
import contextvars
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import NamedTuple

from opentelemetry.trace import Link, Tracer

from treadle.gateway.pipeline.batch.prediction import PredictionResult
from treadle.gateway.pipeline.batch.request import PredictionRequest, Schema
from treadle.gateway.pipeline.batch.request_batch import PendingRequest
from treadle.gateway.pipeline.coalescing.coalescing_queue import CoalesceLimits, CoalescingQueue, leader_of
from treadle.rpc.context import FORWARDED, RequestContext, current, request_scope

_ROW_BYTES = 4096
"""A row that is larger counts as several, so that a batch of them stays small enough to send."""


class CoalescingKey(NamedTuple):
    """What the requests of a batch have in common."""

    deployment: str
    schema: Schema
    outputs: tuple[str, ...]
    now_micros: int
    caller: tuple[str | None, ...]
    """Whatever of a caller travels on to other services: requests of different tenants or actors never share a call."""

    @classmethod
    def of(cls, request: PredictionRequest, context: RequestContext) -> "CoalescingKey":
        """The key of one request."""
        caller = (context.tenant, *map(context.metadata.get, FORWARDED))
        return cls(request.deployment, request.schema, request.outputs, request.now_micros, caller)


def weight_of(request: PredictionRequest) -> int:
    """The rows that a request counts as."""
    size = sum([getattr(values, "nbytes", 0) for values in request.values])
    return max(request.rows, size // _ROW_BYTES)


class Coalescer:
    """Turns requests into batches. Used on one event loop.

    `run(deployment, requests)` gives each request of a batch its outcome. It runs in the context of one of the callers.
    """

    def __init__(
        self,
        run: Callable[[str, Sequence[PendingRequest]], Awaitable[None]],
        limits: CoalesceLimits,
        tracer: Tracer,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._run = run
        self._limits = limits
        self._tracer = tracer
        self._clock = clock
        self._queues: dict[CoalescingKey, CoalescingQueue] = {}

    async def submit(self, key: CoalescingKey, pending: PendingRequest) -> PredictionResult:
        """The answer to the request; raises the TreadleError that is its outcome."""
        queue = self._queues.get(key)
        if queue is not None:
            return await self._queued(queue, pending)
        queue = CoalescingQueue(self._limits, self._clock, partial(self._batch, key), partial(self._close, key))
        self._queues[key] = queue
        call = queue.call_started()
        try:
            await asyncio.sleep(0)  # whatever else arrives in this turn of the loop joins the batch
            if not queue.has_pending:  # a lone request needs neither a task nor a future
                await self._run(key.deployment, (pending,))
                return pending.result()
        finally:
            queue.call_finished(call)
        return await self._queued(queue, pending, first=True)

    async def _queued(
        self, queue: CoalescingQueue, pending: PendingRequest, *, first: bool = False
    ) -> PredictionResult:
        pending.future = asyncio.get_running_loop().create_future()
        pending.caller_context = contextvars.copy_context()
        queue.put(pending, first=first)
        try:
            return await pending.future
        except asyncio.CancelledError:
            queue.abandon(pending)
            raise

    def _close(self, key: CoalescingKey) -> None:
        del self._queues[key]

    async def _batch(self, key: CoalescingKey, requests: Sequence[PendingRequest]) -> None:
        """Works on those of the requests that still wait, and makes sure that each gets an outcome."""
        requests = [pending for pending in requests if not pending.is_done]
        if not requests:
            return
        try:
            await self._run_batch(key, requests)
        except BaseException as error:
            for pending in requests:
                pending.fail(error)
            if not isinstance(error, Exception):
                raise
        for pending in requests:
            if not pending.is_done:
                pending.fail(AssertionError("the pipeline ended without an outcome"))

    async def _run_batch(self, key: CoalescingKey, requests: Sequence[PendingRequest]) -> None:
        if len(requests) == 1:
            await self._run(key.deployment, requests)
            return
        now = self._clock()
        longest = max([pending.deadline for pending in requests]) - now
        with request_scope(replace(current(), deadline=time.monotonic() + longest)), self._span(requests, now):
            await self._run(key.deployment, requests)

    @contextmanager
    def _span(self, requests: Sequence[PendingRequest], now: float) -> Iterator[None]:
        """The span of a batch: a child of the span of the leading request, with links to those of the others."""
        leader = leader_of(requests)
        if not leader.span.trace_flags.sampled:
            yield
            return
        others = [each.span for each in requests if each is not leader and each.span.trace_flags.sampled]
        with self._tracer.start_as_current_span(
            "treadle.coalesced",
            links=[Link(span) for span in others],
            attributes={
                "treadle.batch.size": sum([pending.rows for pending in requests]),
                "treadle.batch.requests": len(requests),
                "treadle.queue_ms": 1e3 * (now - min([pending.arrived for pending in requests])),
            },
            record_exception=False,  # its text may hold values
            set_status_on_exception=False,
        ):
            yield
