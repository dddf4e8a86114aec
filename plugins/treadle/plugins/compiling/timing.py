"""Timing of calls on a machine that runs other work too."""

from collections.abc import Callable, Sequence
from statistics import median

Clock = Callable[[], float]
"""Seconds, monotonic."""


def interleaved_timing(
    calls: Sequence[Callable[[], object]], clock: Clock, *, seconds: float, max_rounds: int = 50, min_rounds: int = 3
) -> list[float]:
    """Median seconds of each call. The calls take turns, so that a disturbance of the machine slows all of them.

    Runs `min_rounds` to `max_rounds` rounds, and no new one after `seconds`.
    """
    for call in calls:
        call()
    taken: list[list[float]] = [[] for _ in calls]
    end = clock() + seconds
    for rounds in range(max_rounds):
        if rounds >= min_rounds and clock() >= end:
            break
        for call, times in zip(calls, taken, strict=True):
            start = clock()
            call()
            times.append(clock() - start)
    return [median(times) for times in taken]
