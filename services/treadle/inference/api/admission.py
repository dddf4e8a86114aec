"""What one model version takes in. What is refused is refused before anything is spent on it.

Two bounds hold. The adaptive limit follows the time that requests really take, whatever it is that slows them down,
but it looks back. What waits is bounded by the time that it is expected to take, from the pace of the model: that
holds from the first moment of an overload on. And who has less time than that is told so at once.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import inf

from treadle.core.errors import DeadlineExceeded, Overloaded
from treadle.core.limiter import AdaptiveLimit
from treadle.inference.batching.batch import Batch
from treadle.inference.batching.latency_model import Pace

MOST_TARGETS = 2
"""What waits may take as many times the target."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What one model version may hold."""

    max_rows: int = 1024
    """Rows in one batch."""
    queue_rows: int = 16_384
    """Rows that may be here; the request that reaches that may go past it."""
    predict_seconds: float = 30.0
    """A batch that takes longer means that the model hangs."""
    target_seconds: float = 0.25
    """Where requests take longer than that from door to door, and the model alone does not, fewer are let in."""


class Admission:
    """Says yes or no to requests for one model version."""

    def __init__(self, name: str, limits: Limits, pace: Pace, clock: Callable[[], float]) -> None:
        self.limit = AdaptiveLimit(
            f"model {name}",
            target_seconds=limits.target_seconds,
            start=limits.queue_rows,
            max_limit=limits.queue_rows,
            clock=clock,
        )
        """Of rows."""
        self._name = name
        self._most_rows = limits.max_rows
        self._pace = pace
        self._clock = clock
        self._room = inf
        """Rows that may wait, by the time that they take."""

    def check(self, waiting_rows: int, running: Batch | None, deadline: float | None) -> None:
        """Overloaded: too much is here already, or it takes longer than until `deadline`. DeadlineExceeded: that has
        passed."""
        limit = self.limit
        if limit.in_progress >= limit.limit:
            raise limit.refusal()
        if waiting_rows and waiting_rows >= self._room:
            wait = self._wait(waiting_rows, running, self._clock())
            raise Overloaded(
                f"model {self._name} has {waiting_rows} rows waiting, for about {wait:.3g} s; retry later",
                retry_after_seconds=max(wait - limit.target_seconds, 0.001),
            )
        if deadline is not None:
            self._in_time(waiting_rows, running, deadline)

    def answered(self, rows: int, seconds: float) -> None:
        """A batch has been answered; on average its rows were here for so long."""
        self.limit.release(rows, seconds)
        self._room = self._pace.rows_within(MOST_TARGETS * self.limit.target_seconds, self._most_rows)

    def _in_time(self, waiting_rows: int, running: Batch | None, deadline: float) -> None:
        now = self._clock()
        if deadline <= now:
            raise DeadlineExceeded("the deadline passed before the request was computed")
        wait = self._wait(waiting_rows, running, now)
        if now + wait > deadline:
            raise Overloaded(
                f"model {self._name} would begin with this in {wait:.3g} s, after its deadline; retry later",
                retry_after_seconds=wait,
            )

    def _wait(self, waiting_rows: int, running: Batch | None, now: float) -> float:
        """Of a request that comes now: the rest of what runs, and the full batches that wait.

        What it takes itself, and those that share its batch, is not counted: in doubt it is let in, and dropped if its
        time comes too late.
        """
        if running is None:
            return 0.0
        most = self._most_rows
        left = running.started_at + self._pace.seconds(running.rows, most) - now
        return max(0.0, left) + self._pace.seconds(waiting_rows // most * most, most)
