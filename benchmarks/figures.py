"""The figures of a run: the document latest.json, and look-ups for targets and tables."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self


@dataclass(frozen=True)
class Key:
    """The key of a figure: server, task, rows and requests in flight."""

    server: str
    task: str
    """A model's name, "features", "chain", "direct", "traced 10 %", …"""
    rows: int = 1
    concurrency: int = 64


@dataclass(frozen=True)
class Cell:
    """Closed-loop load: medians of the runs; errors of all of them."""

    server: str
    task: str
    rows: int
    concurrency: int
    requests_per_second: float
    p50_ms: float
    p99_ms: float
    p999_ms: float
    errors: int
    cpu_seconds_per_1000: float
    """CPU seconds of the server for 1,000 predictions."""
    memory_mib: float
    runs: list[float]
    """Requests a second of each run."""

    @property
    def key(self) -> Key:
        """The key of the figure."""
        return Key(self.server, self.task, self.rows, self.concurrency)

    @property
    def rows_per_second(self) -> float:
        """Predictions a second."""
        return self.requests_per_second * self.rows


@dataclass(frozen=True)
class Latency:
    """Requests one after another (`rate` 0), or at a fixed rate a second whether or not others were answered."""

    server: str
    task: str
    rate: float
    requests: int
    errors: int
    p50_ms: float
    p99_ms: float
    p999_ms: float


@dataclass(frozen=True)
class InProcess:
    """Calls of the model in a loop, without a server."""

    model: str
    rows: int
    rows_per_second: float


@dataclass(frozen=True)
class Soak:
    """A long open loop at a fraction of capacity."""

    seconds: float
    requests_per_second: float
    share_of_capacity: float
    requests: int
    errors: int
    memory_after_a_minute_mib: float
    memory_at_the_end_mib: float

    @property
    def growth(self) -> float:
        """Growth of resident memory after the first minute: 0.01 is one percent."""
        return self.memory_at_the_end_mib / self.memory_after_a_minute_mib - 1


@dataclass
class Figures:
    """All figures of a run of the benchmark."""

    about: dict[str, Any] = field(default_factory=dict)
    """date, effort, hardware, versions, settings"""
    titles: dict[str, str] = field(default_factory=dict)
    """Of the servers, in the order of the tables."""
    cells: list[Cell] = field(default_factory=list)
    latencies: list[Latency] = field(default_factory=list)
    in_process: list[InProcess] = field(default_factory=list)
    soak: Soak | None = None
    unavailable: dict[str, str] = field(default_factory=dict)
    """The reasons of missing figures, by server (and task)."""

    def cell(self, key: Key) -> Cell | None:
        """The load figure at `key`."""
        return next((each for each in self.cells if each.key == key), None)

    def latency(self, server: str, task: str, rate: float = 0.0) -> Latency | None:
        """The latency of sequential requests, or at a rate."""
        wanted = (server, task, rate)
        return next((each for each in self.latencies if (each.server, each.task, each.rate) == wanted), None)

    def of_model(self, model: str, rows: int) -> InProcess | None:
        """The model without a server."""
        return next((each for each in self.in_process if (each.model, each.rows) == (model, rows)), None)

    def of_task(self, task: str) -> Iterator[Cell]:
        """All load figures of a task."""
        return (each for each in self.cells if each.task == task)

    def write(self, file: Path) -> None:
        """As JSON."""
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(_rounded(asdict(self)), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, file: Path) -> Self:
        """The figures in a file of `write`."""
        stored = json.loads(file.read_text(encoding="utf-8"))
        stored["cells"] = [Cell(**each) for each in stored["cells"]]
        stored["latencies"] = [Latency(**each) for each in stored["latencies"]]
        stored["in_process"] = [InProcess(**each) for each in stored["in_process"]]
        stored["soak"] = Soak(**stored["soak"]) if stored["soak"] else None
        return cls(**stored)


def _rounded(value: Any) -> Any:
    """The value rounded to five digits, more than the precision of any measurement; NaN becomes null."""
    if isinstance(value, float):
        return None if value != value else float(f"{value:.5g}")  # NaN
    if isinstance(value, dict):
        return {name: _rounded(each) for name, each in value.items()}
    return [_rounded(each) for each in value] if isinstance(value, list) else value
