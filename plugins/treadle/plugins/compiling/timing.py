"""How long calls take on a machine that does other things too."""

from collections.abc import Callable, Sequence
from statistics import median

Clock = Callable[[], float]
"""Seconds, monotonic."""


def side_by_side(
    calls: Sequence[Callable[[], object]], clock: Clock, *, seconds: float, most: int = 50, least: int = 3
) -> list[float]:
    """Median seconds of each call, taken in turns, so that whatever slows the machine slows all of them.

    `least` to `most` rounds, and no new one after `seconds`.
    """
    for call in calls:
        call()
    taken: list[list[float]] = [[] for _ in calls]
    end = clock() + seconds
    for rounds in range(most):
        if rounds >= least and clock() >= end:
            break
        for call, times in zip(calls, taken, strict=True):
            start = clock()
            call()
            times.append(clock() - start)
    return [median(times) for times in taken]
