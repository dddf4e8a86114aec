"""The fallback chain: the version that was chosen, then the deployment's fallbacks, for each request by itself."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace

from treadle.core.errors import DeadlineExceeded, TreadleError, Unavailable
from treadle.gateway.pipeline.batch.request_batch import PendingRequest, RequestBatch
from treadle.gateway.pipeline.stages.stage import Handler
from treadle.gateway.pipeline.stages.upstream_errors import BATCH_WIDE_ERRORS, CLIENT_ERRORS
from treadle.gateway.policy.deployments import ServedStep

PRIMARY_TIMEOUT_FRACTION = 0.75
"""While another step stands behind it, a step may take this fraction of the time left."""
_SAME_DEADLINE_SECONDS = 0.001


class FallBack:
    """Gives each request an outcome: the answer of the first step that can, or why none could.

    Requests that a step fails to answer, or has not answered when their share of the time is over, go on to the next
    step as a smaller batch. `clock` gives seconds on the event loop's clock.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock

    async def __call__(self, batch: RequestBatch, next_stage: Handler) -> None:
        """Stage."""
        chosen = batch.step
        fallbacks = () if batch.is_shadow else batch.deployment.fallbacks
        behind = [step for step in fallbacks if step.ref != chosen.ref]
        await _Chain([chosen, *behind], next_stage, self._clock).run(batch)


class _Chain:
    """The steps for one batch."""

    def __init__(self, steps: Sequence[ServedStep], answer: Handler, clock: Callable[[], float]) -> None:
        self._steps = steps
        self._answer = answer
        self._clock = clock

    async def run(self, batch: RequestBatch, position: int = 0) -> None:
        """Asks the step at `position`, and further steps for the requests that it does not answer."""
        attempt = self._attempt(batch, position)
        overdue = _Overdue(attempt, self._clock, lambda part: self._go_on(part, position))
        try:
            await self._answer(attempt)
        except TreadleError as error:
            attempt.fail_all(error)
        except BaseException:
            overdue.cancel()
            raise
        failed = overdue.stop()
        if failed:
            await self._go_on(attempt.take(failed), position)
        await overdue.finish()

    def _attempt(self, batch: RequestBatch, position: int) -> RequestBatch:
        step, now = self._steps[position], self._clock()
        fraction = PRIMARY_TIMEOUT_FRACTION if position + 1 < len(self._steps) else 1.0
        shares = [max(0.0, pending.deadline - now) * fraction for pending in batch.requests]
        if step.timeout_seconds:
            shares = [min(share, step.timeout_seconds) for share in shares]
        return replace(
            batch,
            step=replace(step, name=f"fallback:{step.name}") if position else step,
            deadlines=[now + share for share in shares],
            failures={},
            features=None,
            inputs={},
            stale={},
            outputs=(),
        )

    async def _go_on(self, batch: RequestBatch, position: int) -> None:
        """Ends the requests that no further step may answer, and asks the next step for the others."""
        for pending in batch.requests:
            if not pending.is_done:
                self._note_failure(pending, batch.failures[pending], position)
        going = [index for index, pending in enumerate(batch.requests) if not pending.is_done]
        if going:
            await self.run(batch.take(going), position + 1)

    def _note_failure(self, pending: PendingRequest, error: TreadleError, position: int) -> None:
        """Adds the failure of the step at `position` to those of the request, and ends it where no step may follow."""
        if position == 0 and isinstance(error, CLIENT_ERRORS):
            pending.fail(error)
            return
        pending.failures.append(f"{self._steps[position].name}: {error.message}" if position else error.message)
        if pending.deadline <= self._clock():
            pending.fail(DeadlineExceeded(f"the deadline passed: {'; '.join(pending.failures)}"))
        elif position + 1 == len(self._steps):
            pending.fail(_exhausted(pending.failures, error))


class _Overdue:
    """Watches the deadlines of one attempt, and sends requests whose share of the time is over on to the next step."""

    def __init__(
        self, attempt: RequestBatch, clock: Callable[[], float], go_on: Callable[[RequestBatch], Awaitable[None]]
    ) -> None:
        self._attempt = attempt
        self._clock = clock
        self._go_on = go_on
        self._sent: set[PendingRequest] = set()
        self._tasks: list[asyncio.Future[None]] = []
        self._timer: asyncio.TimerHandle | None = None
        # Requests with one deadline need no watch: the calls of the attempt end with it.
        if max(attempt.deadlines) - min(attempt.deadlines) > _SAME_DEADLINE_SECONDS:
            self._set_timer()

    def stop(self) -> Sequence[int]:
        """Ends the watch; positions of the failed requests that it has not sent on."""
        if self._timer is not None:
            self._timer.cancel()
        failures = self._attempt.failures
        if not failures:
            return ()
        return [
            index
            for index, pending in enumerate(self._attempt.requests)
            if pending in failures and pending not in self._sent
        ]

    def cancel(self) -> None:
        """Ends the watch and what it has sent on."""
        self.stop()
        for task in self._tasks:
            task.cancel()

    async def finish(self) -> None:
        """Waits until the requests that were sent on have their outcomes."""
        if self._tasks:
            try:
                await asyncio.gather(*self._tasks)
            except BaseException:
                self.cancel()
                raise

    def _open(self) -> list[int]:
        """Positions of the requests that this attempt may still answer."""
        return [
            index
            for index, pending in enumerate(self._attempt.requests)
            if not pending.is_done and pending not in self._attempt.failures
        ]

    def _set_timer(self) -> None:
        deadlines = [self._attempt.deadlines[index] for index in self._open()]
        if deadlines:
            delay = max(0.0, min(deadlines) - self._clock())
            self._timer = asyncio.get_running_loop().call_later(delay, self._look)

    def _look(self) -> None:
        now = self._clock()
        overdue = [index for index in self._open() if self._attempt.deadlines[index] <= now]
        if overdue:
            late = DeadlineExceeded(
                f"{self._attempt.step.ref}: DEADLINE_EXCEEDED: the step's share of the time is over"
            )
            part = self._attempt.take(overdue)
            for pending in part.requests:
                self._attempt.failures[pending] = late
                self._sent.add(pending)
            self._tasks.append(asyncio.ensure_future(self._go_on(_without_waiting_again(part, late))))
        self._set_timer()


def _without_waiting_again(batch: RequestBatch, error: DeadlineExceeded) -> RequestBatch:
    """The batch with the lookup that is still under way counted as failed, so that no further step waits for it."""
    version = batch.deployment.versions.get(batch.step.ref) if batch.step.ref else None
    if version is None or not version.feature_service or batch.features is not None:
        return batch
    return replace(batch, lookups={version.feature_service: error, **batch.lookups})


def _exhausted(failures: Sequence[str], last: TreadleError) -> TreadleError:
    """Why nothing answered: the one error as it is when there was no chain to fall back on."""
    if len(failures) == 1 and not isinstance(last, DeadlineExceeded):
        return last
    return Unavailable(f"nothing in the fallback chain could answer: {'; '.join(failures)}")


async def isolate_faults(batch: RequestBatch, next_stage: Handler) -> None:
    """Stage: keeps the fault of one request from the others of its batch, by halving the batch until it is alone."""
    try:
        await next_stage(batch)
    except TreadleError as error:
        if len(batch.requests) == 1 or isinstance(error, BATCH_WIDE_ERRORS):
            raise
        middle = len(batch.requests) // 2
        halves = batch.take(range(middle)), batch.take(range(middle, len(batch.requests)))
        await asyncio.gather(*[_isolated(half, next_stage) for half in halves])


async def _isolated(half: RequestBatch, next_stage: Handler) -> None:
    try:
        await isolate_faults(half, next_stage)
    except TreadleError as error:
        half.fail_all(error)
