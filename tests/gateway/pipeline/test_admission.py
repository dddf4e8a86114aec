"""How much is let in: each deployment as much as it answers in time."""

from contextlib import suppress

import pytest

from treadle.core.errors import Overloaded
from treadle.gateway.pipeline.admission import Admission, Limits


class Door:
    """An admission and its clock."""

    def __init__(self, in_flight: int = 64) -> None:
        self.now = 0.0
        self.admission = Admission(Limits(100, in_flight, target_seconds=0.5), lambda: self.now)

    def crowd(self, deployment: str, seconds: float | None, times: int = 10) -> None:
        """As many as are let in, all answered after so long, again and again."""
        for _ in range(times):
            limits = [self.admission.enter(deployment) for _ in range(self.room(deployment))]
            self.now += seconds or 1.0
            for limit in limits:
                self.admission.leave(limit, seconds)

    def room(self, deployment: str) -> int:
        """How many are let in."""
        taken = []
        with suppress(Overloaded):
            while True:
                taken.append(self.admission.enter(deployment))
        for limit in taken:
            self.admission.leave(limit, None)
        return len(taken)


def test_a_deployment_that_answers_late_is_given_less_and_others_are_not() -> None:
    door = Door()
    door.crowd("quick", 0.01)
    door.crowd("slow", 0.01, times=2)
    door.crowd("slow", 4.0)
    assert 16 <= door.room("slow") < 32
    assert door.room("quick") == 64


def test_time_spent_waiting_for_what_is_out_of_reach_tells_nothing() -> None:
    door = Door()
    door.crowd("slow", 0.01, times=2)
    door.crowd("slow", None)
    assert door.room("slow") == 64


def test_all_deployments_share_the_places_of_the_process() -> None:
    door = Door(in_flight=3)
    first = door.admission.enter("a")
    assert door.room("b") == 2
    door.admission.leave(first, 0.1)
    for _ in range(3):
        door.admission.enter("b")
    with pytest.raises(Overloaded, match="the gateway has 3 requests in flight") as caught:
        door.admission.enter("a")
    assert caught.value.retry_after_seconds
