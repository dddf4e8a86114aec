"""Requests in flight: each deployment has as many as it answers in time."""

from contextlib import suppress

import pytest

from treadle.core.errors import Overloaded
from treadle.gateway.pipeline.admission import Admission, AdmissionLimits


class Gateway:
    """An admission and its clock."""

    def __init__(self, in_flight: int = 64) -> None:
        self.now = 0.0
        self.admission = Admission(AdmissionLimits(in_flight, target_seconds=0.5), lambda: self.now)

    def load(self, deployment: str, seconds: float | None, times: int = 10) -> None:
        """As many requests as are admitted, all answered after so many seconds, again and again."""
        for _ in range(times):
            limits = [self.admission.enter(deployment) for _ in range(self.room(deployment))]
            self.now += seconds or 1.0
            for limit in limits:
                self.admission.leave(limit, seconds)

    def room(self, deployment: str) -> int:
        """How many more requests are admitted."""
        taken = []
        with suppress(Overloaded):
            while True:
                taken.append(self.admission.enter(deployment))
        for limit in taken:
            self.admission.leave(limit, None)
        return len(taken)


def test_a_slow_deployment_has_fewer_requests_in_flight_and_others_have_not() -> None:
    gateway = Gateway()
    gateway.load("quick", 0.01)
    gateway.load("slow", 0.01, times=2)
    gateway.load("slow", 4.0)
    assert 16 <= gateway.room("slow") < 32
    assert gateway.room("quick") == 64


def test_time_without_a_plain_answer_leaves_the_limit_as_it_is() -> None:
    gateway = Gateway()
    gateway.load("slow", 0.01, times=2)
    gateway.load("slow", None)
    assert gateway.room("slow") == 64


def test_all_deployments_share_the_limit_of_the_gateway() -> None:
    gateway = Gateway(in_flight=3)
    first = gateway.admission.enter("a")
    assert gateway.room("b") == 2
    gateway.admission.leave(first, 0.1)
    for _ in range(3):
        gateway.admission.enter("b")
    with pytest.raises(Overloaded, match="the gateway has 3 requests in flight") as caught:
        gateway.admission.enter("a")
    assert caught.value.retry_after_seconds
