"""Admission of requests to one model version, before they are decoded.

Two bounds hold. The adaptive limit follows the measured latency of requests, whatever its cause, but reacts late. The
queue is bounded by the time that its rows are expected to take, by the latency model: this bound holds from the first
moment of an overload. A request whose deadline is earlier than its expected start is refused at once.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import inf

from treadle.core.errors import DeadlineExceeded, Overloaded
from treadle.core.limiter import AdaptiveLimit
from treadle.inference.batching.batch import InferenceBatch
from treadle.inference.batching.latency_model import LatencyModel

MAX_QUEUE_TARGETS = 2
"""The queue may hold rows for this many times the target latency."""


@dataclass(frozen=True, slots=True)
class ModelLimits:
    """Limits of one model version."""

    max_rows: int = 1024
    """Rows in one batch."""
    queue_rows: int = 16_384
    """Rows queued or in execution; the last admitted request may exceed it."""
    predict_seconds: float = 30.0
    """Time after which a batch counts as hung."""
    target_seconds: float = 0.25
    """Target latency of a request, queue time included; fewer are admitted while it is exceeded by queueing."""


class ModelAdmission:
    """Admits or refuses requests for one model version."""

    def __init__(self, name: str, limits: ModelLimits, latency: LatencyModel, clock: Callable[[], float]) -> None:
        self.limit = AdaptiveLimit(
            f"model {name}",
            target_seconds=limits.target_seconds,
            start=limits.queue_rows,
            max_limit=limits.queue_rows,
            clock=clock,
        )
        """Adaptive limit of the rows queued or in execution."""
        self._name = name
        self._max_batch_rows = limits.max_rows
        self._latency = latency
        self._clock = clock
        self._queue_capacity_rows = inf
        """Rows that may be queued, from the latency model."""

    def check(self, queued_rows: int, running: InferenceBatch | None, deadline: float | None) -> None:
        """Raises Overloaded if the queue is full or would take longer than until `deadline`, DeadlineExceeded if that
        has passed."""
        limit = self.limit
        if limit.in_progress >= limit.limit:
            raise limit.refusal()
        if queued_rows and queued_rows >= self._queue_capacity_rows:
            wait = self._expected_wait(queued_rows, running, self._clock())
            raise Overloaded(
                f"model {self._name} has {queued_rows} rows waiting, for about {wait:.3g} s; retry later",
                retry_after_seconds=max(wait - limit.target_seconds, 0.001),
            )
        if deadline is not None:
            self._check_deadline(queued_rows, running, deadline)

    def batch_completed(self, rows: int, seconds: float) -> None:
        """Records a completed batch; `seconds` is the mean time of its rows from queueing to result."""
        self.limit.release(rows, seconds)
        self._queue_capacity_rows = self._latency.capacity_within(
            MAX_QUEUE_TARGETS * self.limit.target_seconds, self._max_batch_rows
        )

    def _check_deadline(self, queued_rows: int, running: InferenceBatch | None, deadline: float) -> None:
        now = self._clock()
        if deadline <= now:
            raise DeadlineExceeded("the deadline passed before the request was computed")
        wait = self._expected_wait(queued_rows, running, now)
        if now + wait > deadline:
            raise Overloaded(
                f"model {self._name} would begin with this in {wait:.3g} s, after its deadline; retry later",
                retry_after_seconds=wait,
            )

    def _expected_wait(self, queued_rows: int, running: InferenceBatch | None, now: float) -> float:
        """Seconds until a new request would start: the rest of the running batch, and the full batches in the queue.

        The request's own batch is not counted. An optimistic estimate admits a request that may expire in the queue.
        """
        if running is None:
            return 0.0
        most = self._max_batch_rows
        left = running.started_at + self._latency.estimate_seconds(running.rows, most) - now
        return max(0.0, left) + self._latency.estimate_seconds(queued_rows // most * most, most)
