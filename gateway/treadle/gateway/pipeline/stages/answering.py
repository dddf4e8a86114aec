"""Answers the requests of a batch that a step could serve: prediction ids, a record for the ledger, the outcomes."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from treadle.core.model_ref import ModelRef
from treadle.gateway.pipeline.batch.prediction import PredictionRecord, PredictionResult, record_of
from treadle.gateway.pipeline.batch.request_batch import RequestBatch
from treadle.gateway.pipeline.stages.prediction_ids import PredictionIds
from treadle.gateway.pipeline.stages.stage import Handler


class AnswerRequests:
    """Gives each request that is still open its answer, once the record of it is written.

    Requests that are answered alike share a record. `remember` is called with each record before any caller gets its
    answer, and must not block. `clock` is the pipeline's.
    """

    def __init__(
        self, ids: PredictionIds, remember: Callable[[PredictionRecord], None], clock: Callable[[], float]
    ) -> None:
        self._ids = ids
        self._remember = remember
        self._clock = clock

    async def __call__(self, batch: RequestBatch, next_stage: Handler) -> None:
        """Stage."""
        await next_stage(batch)
        for alike, indices in _answered_alike(batch).items():
            self._answer(batch.take(indices), alike)

    def _answer(self, batch: RequestBatch, alike: "_Alike") -> None:
        reasons = list(alike.failures)
        if alike.stale:
            reasons.append(f"features: stale: {', '.join(alike.stale)}")
        ref = batch.step.ref or ModelRef(batch.chosen.model, 0)
        ids = self._ids.take(batch.rows)
        record = record_of(batch, ref, alike.served_by, "; ".join(reasons), ids, self._clock())
        self._remember(record)
        for index, pending in enumerate(batch.requests):
            pending.succeed(PredictionResult(record, index))


class _Alike(NamedTuple):
    """What requests that share a record have in common."""

    served_by: str
    failures: tuple[str, ...]
    """Why earlier steps of the fallback chain could not answer."""
    stale: tuple[str, ...]
    """Features that are stale."""


def _answered_alike(batch: RequestBatch) -> Mapping[_Alike, Sequence[int]]:
    """Positions of the requests that are still open."""
    found: dict[_Alike, list[int]] = {}
    for index, pending in enumerate(batch.requests):
        if not pending.is_done and pending not in batch.failures:
            stale = _stale_features(batch, index) if batch.stale else ()
            alike = _Alike(batch.step.name or pending.route, tuple(pending.failures), stale)
            found.setdefault(alike, []).append(index)
    return found


def _stale_features(batch: RequestBatch, index: int) -> tuple[str, ...]:
    rows = slice(batch.starts[index], batch.starts[index + 1])
    return tuple([name for name, mask in batch.stale.items() if mask[rows].any()])
