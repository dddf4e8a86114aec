"""The adaptive limit, on simulated servers with a clock of their own."""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

import numpy as np
import pytest

from treadle.core.errors import Overloaded
from treadle.core.limiter import TIMES_THE_LEAST, AdaptiveLimit

TARGET = 0.05


@dataclass
class Simulated:
    """A server that takes up to `most_rows` of what waits at once and needs `seconds(rows)` for it."""

    seconds: Callable[[int], float]
    most_rows: int
    limit: AdaptiveLimit = field(init=False)
    now: float = 0.0
    waiting: deque[float] = field(default_factory=deque)
    running: list[float] = field(default_factory=list)
    ends: float = 0.0
    latencies: list[tuple[float, float]] = field(default_factory=list)
    """When it was answered, and how long it took."""
    refused: int = 0

    def __post_init__(self) -> None:
        start = max(64, 4 * TARGET / self.seconds(1))
        self.limit = AdaptiveLimit(
            "the server", target_seconds=TARGET, start=start, most=16_384, clock=lambda: self.now
        )

    def load(self, rate: float, seconds: float, random: Random) -> None:
        """Single requests at random moments."""
        end, arrival = self.now + seconds, self.now
        while arrival < end:
            arrival += random.expovariate(rate)
            while self.running and self.ends <= arrival:
                self.now = self.ends
                self.finish()
            self.now = arrival
            self.arrive()

    def arrive(self) -> None:
        try:
            self.limit.enter()
        except Overloaded:
            self.refused += 1
            return
        self.waiting.append(self.now)
        if not self.running:
            self.start()

    def start(self) -> None:
        self.running = [self.waiting.popleft() for _ in range(min(self.most_rows, len(self.waiting)))]
        self.ends = self.now + self.seconds(len(self.running)) if self.running else self.now

    def finish(self) -> None:
        for entered in self.running:
            self.latencies.append((self.now, self.now - entered))
            self.limit.leave(1, self.now - entered)
        self.start()

    def capacity(self) -> float:
        return max(rows / self.seconds(rows) for rows in range(1, self.most_rows + 1))


SERVERS = {
    "one by one": Simulated(lambda rows: 0.002 * rows, 1),
    "batches that cost by the row": Simulated(lambda rows: 0.0001 + 0.001 * rows, 1024),
    "batches that cost little more by the row": Simulated(lambda rows: 0.002 + 0.0001 * rows, 256),
    "slow rows": Simulated(lambda rows: 0.01 * rows, 1024),
}


@pytest.mark.parametrize("name", SERVERS)
@pytest.mark.parametrize("times", [1.5, 3.0, 10.0])
def test_goodput_stays_and_time_is_bounded_however_much_is_asked(name: str, times: float) -> None:
    shape = SERVERS[name]
    server, random = Simulated(shape.seconds, shape.most_rows), Random(7)
    capacity = server.capacity()
    server.load(capacity * times, 6, random)  # the way there
    begun = server.now
    server.load(capacity * times, 8, random)
    steady = [latency for at, latency in server.latencies if at > begun]
    assert len(steady) / 8 >= 0.95 * capacity
    assert np.percentile(steady, 99) <= 2 * max(TARGET, TIMES_THE_LEAST * server.seconds(1))
    assert server.refused


@pytest.mark.parametrize("name", SERVERS)
def test_below_capacity_next_to_nothing_is_refused(name: str) -> None:
    shape = SERVERS[name]
    server, random = Simulated(shape.seconds, shape.most_rows), Random(7)
    server.load(server.capacity() * 0.7, 10, random)
    assert server.refused <= len(server.latencies) * 0.001


def test_the_way_to_the_limit_is_short() -> None:
    server, random = Simulated(SERVERS["slow rows"].seconds, 1024), Random(7)
    server.load(300, 6, random)  # of 100 that it can do
    assert max(latency for at, latency in server.latencies if at > 3) <= 4 * TARGET


def test_room_comes_back_after_an_overload() -> None:
    server, random = Simulated(SERVERS["one by one"].seconds, 1), Random(7)
    server.load(server.capacity() * 10, 3, random)
    server.load(server.capacity() * 0.7, 1, random)
    before = server.refused
    server.load(server.capacity() * 0.7, 10, random)
    assert server.refused - before <= 0.002 * len(server.latencies)


def test_one_hiccup_is_not_an_overload() -> None:
    now = [0.0]
    limit = AdaptiveLimit("x", target_seconds=TARGET, start=100, most=1000, clock=lambda: now[0])
    for seconds in (0.001, 2.0, 0.001, 2.0, 0.001):
        limit.enter()
        now[0] += 5
        limit.leave(1, seconds)
    assert limit.limit == 100


def test_a_refusal_says_how_long_work_takes() -> None:
    now = [0.0]
    limit = AdaptiveLimit("model m/1", target_seconds=TARGET, start=4, most=4, clock=lambda: now[0])
    for _ in range(4):
        limit.enter()
    now[0] = 0.03
    limit.leave(1, 0.03)
    limit.enter()
    with pytest.raises(Overloaded, match="model m/1 has 4 in progress; 4 is") as caught:
        limit.enter()
    assert caught.value.retry_after_seconds == pytest.approx(0.03)
    limit.abandon(4)
    assert limit.used == 0


def test_a_large_piece_may_go_past_the_limit_alone() -> None:
    limit = AdaptiveLimit("x", target_seconds=TARGET, start=4, most=100)
    limit.enter(3)
    limit.enter(50)
    with pytest.raises(Overloaded):
        limit.enter(1)
