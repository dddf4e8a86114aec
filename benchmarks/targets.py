"""The targets as data: each is a ratio of two figures of a run, and its limit."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from benchmarks.figures import Figures, Key

ENVOY, GRPCIO, ECHO = "treadle-envoy", "treadle-grpcio", "echo"
SEPARATE, COLOCATED = "treadle-envoy", "treadle-envoy-colocated"
MLSERVER = ("mlserver", "mlserver-wide")
"""The configurations of MLServer; targets use the faster one."""
Value = Callable[[Figures], float | None]
"""A figure, or None where it was not measured."""


@dataclass(frozen=True)
class Target:
    """`over` divided by `under` must be at least, or at most, `limit`."""

    what: str
    against: str
    over: Value
    under: Value
    limit: float
    at_most: bool = False

    def judge(self, figures: Figures) -> "TargetResult":
        """The ratio in these figures."""
        over, under = self.over(figures), self.under(figures)
        return TargetResult(self, over / under if over is not None and under else None)


@dataclass(frozen=True)
class TargetResult:
    """A target with the ratio that was reached."""

    target: Target
    ratio: float | None
    """None where a figure is missing: a target that was not measured is missed."""

    @property
    def met(self) -> bool:
        """Whether the ratio is within the limit."""
        if self.ratio is None:
            return False
        return self.ratio <= self.target.limit if self.target.at_most else self.ratio >= self.target.limit


def rate(*servers: str, task: str, rows: int = 1) -> Value:
    """Requests a second with 64 in flight, of the fastest of these servers."""

    def value(figures: Figures) -> float | None:
        found = (figures.cell(Key(server, task, rows)) for server in servers)
        return max((cell.requests_per_second for cell in found if cell is not None), default=None)

    return value


def lone(server: str, task: str) -> Value:
    """Median latency of sequential requests in milliseconds."""

    def value(figures: Figures) -> float | None:
        found = figures.latency(server, task)
        return found.p50_ms if found is not None else None

    return value


def rows_served(server: str, model: str, rows: int) -> Value:
    """Rows a second with 64 in flight."""

    def value(figures: Figures) -> float | None:
        found = figures.cell(Key(server, model, rows))
        return found.rows_per_second if found is not None else None

    return value


def rows_in_process(model: str, rows: int) -> Value:
    """Rows a second of the compiled model without a server."""

    def value(figures: Figures) -> float | None:
        found = figures.of_model(model, rows)
        return found.rows_per_second if found is not None else None

    return value


def traced(percent: int) -> Value:
    """Requests a second with this share of the requests traced."""
    return rate(ENVOY, task=f"traced {percent} %")


def soak_memory(figures: Figures) -> float | None:
    """Memory at the end of the soak, as a multiple of that after its first minute."""
    return 1 + figures.soak.growth if figures.soak else None


def soak_answered(figures: Figures) -> float | None:
    """The fraction of answered requests of the soak."""
    return 1 - figures.soak.errors / figures.soak.requests if figures.soak else None


def one(_: Figures) -> float:
    """1, for figures that are a ratio already."""
    return 1.0


def _against_peers() -> Iterator[Target]:
    limits = (("lr", 10.0, 4.0, 11.0), ("rf", 18.0, 5.0, 100.0), ("mlp", 12.0, 3.2, 5.0))
    peers: tuple[tuple[str, tuple[str, ...]], ...] = (
        ("MLServer, its best configuration", MLSERVER),
        ("Triton (pytriton)", ("pytriton",)),
        ("FastAPI, hand-written", ("fastapi",)),
    )
    for place, (against, servers) in enumerate(peers, 1):
        for model, *wanted in limits:
            ours, theirs = rate(ENVOY, task=model), rate(*servers, task=model)
            yield Target(f"{model.upper()}, Envoy host, req/s", against, ours, theirs, wanted[place - 1])
    for model, limit in (("lr", 2.0), ("rf", 15.0)):
        ours, theirs = rate(GRPCIO, task=model), rate("grpcaio", task=model)
        yield Target(f"{model.upper()}, grpcio host, req/s", "grpc.aio, model.predict", ours, theirs, limit)
    for model in ("lr", "rf", "mlp"):
        ours, theirs = rate(ENVOY, task=model), rate(ECHO, task=model)
        yield Target(f"{model.upper()}, Envoy host, req/s", "echo on the Envoy host", ours, theirs, 0.6)


def _of_the_chain() -> Iterator[Target]:
    for server, what, share, times in ((SEPARATE, "three processes", 0.45, 6.0), (COLOCATED, "one process", 0.7, 2.0)):
        direct = rate(SEPARATE, task="direct")
        yield Target(f"whole chain, {what}, req/s", "ModelInfer alone", rate(server, task="chain"), direct, share)
        yield Target(
            f"whole chain, {what}, lone p50", "ModelInfer alone",
            lone(server, "chain"), lone(SEPARATE, "direct"), times, at_most=True,
        )  # fmt: skip


def _of_one_request() -> Iterator[Target]:
    yield Target("RF, lone p50, times faster", "grpc.aio, model.predict", lone("grpcaio", "rf"), lone(ENVOY, "rf"), 10)
    for percent, limit in ((10, 0.9), (100, 0.5)):
        yield Target(f"LR, {percent} % of requests traced", "tracing off", traced(percent), traced(0), limit)
    for model in ("lr", "rf"):
        ours, alone = rows_served(ENVOY, model, 64), rows_in_process(model, 64)
        yield Target(f"{model.upper()}, 64-row requests, rows/s", "session.run alone", ours, alone, 0.5)


def _of_the_soak() -> Iterator[Target]:
    yield Target("soak, requests answered", "requests sent", soak_answered, one, 1.0)
    yield Target("soak, memory at the end", "after a minute", soak_memory, one, 1.02, at_most=True)


TARGETS: tuple[Target, ...] = (*_against_peers(), *_of_the_chain(), *_of_one_request(), *_of_the_soak())


def target_results(figures: Figures) -> list[TargetResult]:
    """The result of every target for these figures."""
    return [target.judge(figures) for target in TARGETS]
