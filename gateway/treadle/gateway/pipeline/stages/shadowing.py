"""Copies of requests to versions whose answers are recorded only: off the requests' path, and dropped when busy."""

import asyncio
from collections.abc import Callable
from dataclasses import replace

from treadle.core.model_ref import ModelRef
from treadle.gateway.pipeline.batch.prediction import PredictionResult
from treadle.gateway.pipeline.batch.request_batch import PendingRequest, RequestBatch
from treadle.gateway.pipeline.stages.stage import Handler
from treadle.gateway.policy.deployments import ServedStep
from treadle.rpc.context import current, request_scope

SHADOW = "shadow"


class ShadowRunner:
    """Runs shadow batches in the background.

    At most `most` run at once; more are dropped, and so they can't slow the traffic that they copy. `ended(version,
    outcome, requests)` is told of each: "ok", "error" or "dropped", and how many requests.
    """

    def __init__(
        self,
        most: int,
        ended: Callable[[str, str, int], None],
        log_unexpected: Callable[[str, BaseException], None],
    ) -> None:
        self._most = most
        self._ended = ended
        self._log_unexpected = log_unexpected
        self._tasks: set[asyncio.Task[None]] = set()

    def submit(self, batch: RequestBatch, handler: Handler) -> None:
        """Starts `handler` on the batch unless too many are running."""
        version = str(batch.chosen)
        if len(self._tasks) >= self._most:
            self._ended(version, "dropped", len(batch.requests))
            return
        # The callers' deadlines end with their answers, not with the shadow's.
        with request_scope(replace(current(), deadline=None)):
            task = asyncio.create_task(self._run(version, batch, handler))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run(self, version: str, batch: RequestBatch, handler: Handler) -> None:
        try:
            await handler(batch)
        except Exception as error:
            self._log_unexpected(version, error)
        answered = sum([isinstance(pending.outcome, PredictionResult) for pending in batch.requests])
        for outcome, count in (("ok", answered), ("error", len(batch.requests) - answered)):
            if count:
                self._ended(version, outcome, count)

    async def drain(self) -> None:
        """Waits for those that run."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    async def close(self) -> None:
        """Ends those that run."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


class Shadow:
    """Hands on a copy of each batch to the deployment's shadow versions, once its requests have their outcomes.

    `clock` is the pipeline's.
    """

    def __init__(self, runner: ShadowRunner, clock: Callable[[], float]) -> None:
        self._runner = runner
        self._clock = clock

    async def __call__(self, batch: RequestBatch, next_stage: Handler) -> None:
        """Stage."""
        try:
            await next_stage(batch)
        finally:
            for ref in batch.deployment.shadows:
                if ref != batch.chosen:
                    self._runner.submit(self._copy(batch, ref), next_stage)

    def _copy(self, batch: RequestBatch, ref: ModelRef) -> RequestBatch:
        """The same rows, with time of their own and nobody who waits; what was looked up for them is used again."""
        now = self._clock()
        deadline = now + batch.deployment.request_timeout_seconds
        requests = [
            PendingRequest(each.request, each.context, now, deadline, each.span, each.rows) for each in batch.requests
        ]
        return replace(batch, requests=requests, step=ServedStep(SHADOW, ref), chosen=ref, is_shadow=True, failures={})
