"""How many requests the gateway works on at once."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from treadle.core.errors import Overloaded
from treadle.core.limiter import AdaptiveLimit

_LEAST_IN_FLIGHT = 16


@dataclass(frozen=True, slots=True)
class AdmissionLimits:
    """The most that is admitted."""

    in_flight: int
    """Requests in work at once, of all deployments."""
    target_seconds: float = 0.5
    """Of one deployment, no more requests at once than are answered in this time on average."""


class Admission:
    """Counts requests in flight and refuses what is too much.

    Each deployment has a limit of its own, which follows the time that its answers take: a slow one takes no room from
    a quick one.
    """

    def __init__(self, limits: AdmissionLimits, clock: Callable[[], float] = time.monotonic) -> None:
        self._limits = limits
        self._clock = clock
        self._by_deployment: dict[str, AdaptiveLimit] = {}
        self.in_flight = 0

    def enter(self, deployment: str) -> AdaptiveLimit:
        """Takes one of the places for requests in flight, of the limit returned; Overloaded when all are taken.

        `deployment` is the name of one that exists.
        """
        if self.in_flight >= self._limits.in_flight:
            raise Overloaded(f"the gateway has {self.in_flight} requests in flight, its limit; retry later")
        limit = self._by_deployment.get(deployment) or self._limit(deployment)
        limit.acquire()
        self.in_flight += 1
        return limit

    def leave(self, limit: AdaptiveLimit, seconds: float | None) -> None:
        """Gives the place back, after so many seconds.

        None: the time tells nothing of the load. So it is with errors, and with fallbacks that waited for a service
        that is out of reach: then it would be wrong to let in less.
        """
        self.in_flight -= 1
        if seconds is None:
            limit.release_unmeasured(1)
        else:
            limit.release(1, seconds)

    def _limit(self, deployment: str) -> AdaptiveLimit:
        most = self._limits.in_flight
        limit = AdaptiveLimit(
            f"deployment {deployment}",
            target_seconds=self._limits.target_seconds,
            start=most,
            max_limit=most,
            min_limit=min(_LEAST_IN_FLIGHT, most),
            clock=self._clock,
        )
        self._by_deployment[deployment] = limit
        return limit
