"""The adaptive limit, on simulated servers with simulated time."""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

import numpy as np
import pytest

from treadle.core.errors import Overloaded
from treadle.core.limiter import LOWEST_LATENCY_MULTIPLE, AdaptiveLimit

TARGET = 0.05


@dataclass
class Simulated:
    """A server that takes up to `most_rows` queued requests as one batch, which takes `seconds(rows)`."""

    seconds: Callable[[int], float]
    most_rows: int
    limit: AdaptiveLimit = field(init=False)
    now: float = 0.0
    waiting: deque[float] = field(default_factory=deque)
    running: list[float] = field(default_factory=list)
    ends: float = 0.0
    latencies: list[tuple[float, float]] = field(default_factory=list)
    """Time of the answer, and latency, of each request."""
    refused: int = 0

    def __post_init__(self) -> None:
        start = max(64, 4 * TARGET / self.seconds(1))
        self.limit = AdaptiveLimit(
            "the server", target_seconds=TARGET, start=start, max_limit=16_384, clock=lambda: self.now
        )

    def load(self, rate: float, seconds: float, random: Random) -> None:
        """Sends single requests at random times, `rate` a second on average."""
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
            self.limit.acquire()
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
            self.limit.release(1, self.now - entered)
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
def test_under_overload_goodput_stays_high_and_latency_bounded(name: str, times: float) -> None:
    shape = SERVERS[name]
    server, random = Simulated(shape.seconds, shape.most_rows), Random(7)
    capacity = server.capacity()
    server.load(capacity * times, 6, random)  # the limit adapts
    begun = server.now
    server.load(capacity * times, 8, random)
    steady = [latency for at, latency in server.latencies if at > begun]
    assert len(steady) / 8 >= 0.95 * capacity
    assert np.percentile(steady, 99) <= 2 * max(TARGET, LOWEST_LATENCY_MULTIPLE * server.seconds(1))
    assert server.refused


@pytest.mark.parametrize("name", SERVERS)
def test_below_capacity_at_most_one_request_in_a_thousand_is_refused(name: str) -> None:
    shape = SERVERS[name]
    server, random = Simulated(shape.seconds, shape.most_rows), Random(7)
    server.load(server.capacity() * 0.7, 10, random)
    assert server.refused <= len(server.latencies) * 0.001


def test_the_limit_is_found_within_seconds_of_an_overload() -> None:
    server, random = Simulated(SERVERS["slow rows"].seconds, 1024), Random(7)
    server.load(300, 6, random)  # the capacity is 100 a second
    assert max(latency for at, latency in server.latencies if at > 3) <= 4 * TARGET


def test_after_an_overload_the_limit_grows_back() -> None:
    server, random = Simulated(SERVERS["one by one"].seconds, 1), Random(7)
    server.load(server.capacity() * 10, 3, random)
    server.load(server.capacity() * 0.7, 1, random)
    before = server.refused
    server.load(server.capacity() * 0.7, 10, random)
    assert server.refused - before <= 0.002 * len(server.latencies)


def test_one_hiccup_is_not_an_overload() -> None:
    now = [0.0]
    limit = AdaptiveLimit("x", target_seconds=TARGET, start=100, max_limit=1000, clock=lambda: now[0])
    for seconds in (0.001, 2.0, 0.001, 2.0, 0.001):
        limit.acquire()
        now[0] += 5
        limit.release(1, seconds)
    assert limit.limit == 100


def test_a_refusal_carries_the_recent_latency_as_its_pushback() -> None:
    now = [0.0]
    limit = AdaptiveLimit("model m/1", target_seconds=TARGET, start=4, max_limit=4, clock=lambda: now[0])
    for _ in range(4):
        limit.acquire()
    now[0] = 0.03
    limit.release(1, 0.03)
    limit.acquire()
    with pytest.raises(Overloaded, match="model m/1 has 4 in progress; 4 is") as caught:
        limit.acquire()
    assert caught.value.retry_after_seconds == pytest.approx(0.03)
    limit.release_unmeasured(4)
    assert limit.in_progress == 0


def test_one_large_request_may_exceed_the_limit() -> None:
    limit = AdaptiveLimit("x", target_seconds=TARGET, start=4, max_limit=100)
    limit.acquire(3)
    limit.acquire(50)
    with pytest.raises(Overloaded):
        limit.acquire(1)
