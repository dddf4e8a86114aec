"""An adaptive limit on work in progress: as much is let in as can be answered in good time, the rest is refused.

Once a server is busy, letting in more makes everything take longer and nothing be done sooner. So the limit follows
the time that work takes from door to door, waiting included, in windows:

- longer than the target in two windows running (one is a hiccup): the limit shrinks in proportion, at once where the
  excess is large, by the square root near the target, where steps of full size would swing;
- shorter, and the limit in use: it grows by the same rule, half as much again at most;
- otherwise it stays. A quiet service is not limited by what it happens to need.

The target is the one set, or a multiple of the quickest answer so far where work takes that long by itself. The time
of the whole is measured and not the waiting alone, because a server that takes all that waits in one batch would hide
any amount of it in the batch. Everything is on one thread; the clock is the caller's.
"""

import time
from collections.abc import Callable
from math import inf, sqrt

from treadle.core.errors import Overloaded

TIMES_THE_LEAST = 8.0
"""Batches that share a fixed cost need as much to reach nine tenths of their throughput."""
_IN_USE = 0.9
_FASTEST_GROWTH = 1.5
_LEAST_PUSHBACK_SECONDS = 0.001


class AdaptiveLimit:
    """Counts work in progress, in requests or in rows, and refuses what comes on top.

    `enter` before any costly work; then `leave` when it has been done, or `abandon`.
    """

    def __init__(
        self,
        what: str,
        *,
        target_seconds: float,
        start: float,
        most: float,
        least: float = 4,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`what` begins the refusal: "model iris/3". `start` is the first limit, `least` and `most` are its bounds."""
        self.limit = min(max(start, least), most)
        self.used: float = 0
        self._peak: float = 0
        self._what = what
        self._target = target_seconds
        self._least = least
        self._most = most
        self._clock = clock
        self._quickest = inf
        self._suspect = False
        self._took = 0.0
        self._open_window(clock())

    def enter(self, amount: float = 1) -> None:
        """Takes a place for `amount`. Overloaded, with pushback, where the limit is reached.

        It is reached by what is there, not by what comes: one large piece may go past it, for otherwise it would
        never find room beside small ones.
        """
        if self.used >= self.limit:
            raise self.refusal()
        self.take(amount)

    def take(self, amount: float = 1) -> None:
        """Takes a place without asking; for an owner that has compared `used` with `limit` already."""
        self.used = used = self.used + amount
        if used > self._peak:
            self._peak = used

    def refusal(self) -> Overloaded:
        """What `enter` raises; for an owner that has reasons of its own to refuse."""
        return Overloaded(
            f"{self._what} has {self.used:g} in progress; {int(self.limit)} is what it can answer in time; retry later",
            retry_after_seconds=self.seconds,
        )

    @property
    def target_seconds(self) -> float:
        """How long work may take: as set, or a multiple of the quickest so far."""
        return self._target if self._quickest == inf else max(self._target, TIMES_THE_LEAST * self._quickest)

    @property
    def seconds(self) -> float:
        """How long work has taken lately; over 0."""
        return max(self._took, self._mean(), _LEAST_PUSHBACK_SECONDS)

    def leave(self, amount: float, seconds: float) -> None:
        """Gives the place of `amount` back: it took `seconds` from `enter` to now (of several pieces: on average)."""
        self.used -= amount
        now = self._clock()
        if now < self._began:  # what was let in before the last step tells nothing about it
            return
        self._amount += amount
        self._time += amount * seconds
        if seconds < self._quickest:
            self._quickest = seconds
        if now - self._began >= max(self._target, 2 * self._mean()):
            self._adapt(now)

    def abandon(self, amount: float) -> None:
        """Gives a place back for work that was not done: cancelled, late, malformed. It tells nothing about speed."""
        self.used -= amount

    def _adapt(self, now: float) -> None:
        took = self._took = self._mean()
        ratio = self.target_seconds / max(took, 1e-9)
        slow = ratio < 1
        settled = now
        if slow and self._suspect:
            self.limit = max(self._least, min(self.limit, self._peak) * (ratio if ratio < 0.5 else sqrt(ratio)))
            settled += took
        elif not slow and self._peak >= self.limit * _IN_USE:
            self.limit = min(self._most, self.limit * min(sqrt(ratio), _FASTEST_GROWTH) + 1)
        self._suspect = slow
        self._open_window(settled)

    def _open_window(self, began: float) -> None:
        self._began = began
        self._peak = self.used
        self._amount = 0.0
        self._time = 0.0

    def _mean(self) -> float:
        return self._time / self._amount if self._amount else 0.0
