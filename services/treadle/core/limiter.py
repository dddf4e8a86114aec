"""An adaptive concurrency limit: it admits as much work as finishes within a target time, and refuses the rest.

Once a server is saturated, admitting more work makes every request slower and none faster. So the limit follows the
latency of the work, queueing included, measured in windows:

- The latency is over the target in two consecutive windows (one may be a hiccup): the limit shrinks, in proportion to
  the excess where that is large, and by its square root near the target, where larger steps would oscillate.
- The latency is under the target and the limit was reached: the limit grows by the same rule, by at most a half.
- Otherwise the limit stays, so that an idle service keeps the limit that it found under load.

The target is the configured one, or a multiple of the lowest latency so far where the work is slower than that by
itself. The whole latency is measured and not the queueing alone, because a server that takes its whole queue into one
batch would hide any queueing in the batch. All methods run on one thread; the clock is an argument.
"""

import time
from collections.abc import Callable
from math import inf, sqrt

from treadle.core.errors import Overloaded

LOWEST_LATENCY_MULTIPLE = 8.0
"""The target is never below this many times the lowest latency: batches with a fixed cost reach nine tenths of their
throughput there."""
_REACHED_FRACTION = 0.9
"""A peak of this fraction of the limit counts as reaching it."""
_MAX_GROWTH = 1.5
_MIN_PUSHBACK_SECONDS = 0.001


class AdaptiveLimit:
    """Counts work in progress, in requests or in rows, and refuses work over the limit.

    Call `acquire` before any costly work; then `release` when it is done, or `release_unmeasured`.
    """

    def __init__(
        self,
        name: str,
        *,
        target_seconds: float,
        start: float,
        max_limit: float,
        min_limit: float = 4,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`name` begins the message of a refusal ("model iris/3"). `start` is the first limit."""
        self.limit = min(max(start, min_limit), max_limit)
        self.in_progress: float = 0
        self._peak: float = 0
        self._name = name
        self._target = target_seconds
        self._min_limit = min_limit
        self._max_limit = max_limit
        self._clock = clock
        self._lowest_seconds = inf
        self._slow_before = False
        self._recent_seconds = 0.0
        self._open_window(clock())

    def acquire(self, amount: float = 1) -> None:
        """Adds `amount` to the work in progress. Overloaded, with pushback, where the limit is reached already.

        The new amount itself is not compared: one large request may exceed the limit, because otherwise it would
        never be admitted beside small ones.
        """
        if self.in_progress >= self.limit:
            raise self.refusal()
        self.acquire_unchecked(amount)

    def acquire_unchecked(self, amount: float = 1) -> None:
        """Adds `amount` without a check, for a caller that has compared `in_progress` with `limit` already."""
        self.in_progress = in_progress = self.in_progress + amount
        if in_progress > self._peak:
            self._peak = in_progress

    def refusal(self) -> Overloaded:
        """The error that `acquire` raises, for a caller that has its own reasons to refuse."""
        return Overloaded(
            f"{self._name} has {self.in_progress:g} in progress; "
            f"{int(self.limit)} is what it can answer in time; retry later",
            retry_after_seconds=self.seconds,
        )

    @property
    def target_seconds(self) -> float:
        """The latency that the limit aims at: the configured one, or a multiple of the lowest so far."""
        return (
            self._target
            if self._lowest_seconds == inf
            else max(self._target, LOWEST_LATENCY_MULTIPLE * self._lowest_seconds)
        )

    @property
    def seconds(self) -> float:
        """The recent latency, over 0: the pushback of a refusal."""
        return max(self._recent_seconds, self._mean(), _MIN_PUSHBACK_SECONDS)

    def release(self, amount: float, seconds: float) -> None:
        """Removes finished work of `amount`; `seconds` is its mean latency, from `acquire` to now."""
        self.in_progress -= amount
        now = self._clock()
        if now < self._began:  # work admitted before the last change of the limit does not measure it
            return
        self._amount += amount
        self._time += amount * seconds
        if seconds < self._lowest_seconds:
            self._lowest_seconds = seconds
        if now - self._began >= max(self._target, 2 * self._mean()):
            self._adapt(now)

    def release_unmeasured(self, amount: float) -> None:
        """Removes work that was not done (cancelled, expired, malformed), whose latency means nothing."""
        self.in_progress -= amount

    def _adapt(self, now: float) -> None:
        mean = self._recent_seconds = self._mean()
        ratio = self.target_seconds / max(mean, 1e-9)
        slow = ratio < 1
        settled = now
        if slow and self._slow_before:
            self.limit = max(self._min_limit, min(self.limit, self._peak) * (ratio if ratio < 0.5 else sqrt(ratio)))
            settled += mean
        elif not slow and self._peak >= self.limit * _REACHED_FRACTION:
            self.limit = min(self._max_limit, self.limit * min(sqrt(ratio), _MAX_GROWTH) + 1)
        self._slow_before = slow
        self._open_window(settled)

    def _open_window(self, began: float) -> None:
        self._began = began
        self._peak = self.in_progress
        self._amount = 0.0
        self._time = 0.0

    def _mean(self) -> float:
        return self._time / self._amount if self._amount else 0.0
