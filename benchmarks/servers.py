"""What all measured servers have in common, and waiting until one answers right."""

import asyncio
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import grpc

from benchmarks import clients
from benchmarks.asks import Ask, WrongAnswerError
from benchmarks.models import Model
from benchmarks.processes import Started

ROOT = Path(__file__).parents[1]
WORK = ROOT / ".bench"
"""Environments of peers, trained models, logs; all of it can be made again."""
FIRST_PORT = 20_000
PORTS_A_SERVER = 400
"""Apart, so that servers that start at the same time do not choose the same ones."""
_POLL_SECONDS = 0.1
_READY_SECONDS = 120.0


class ServerFailedError(Exception):
    """A server did not start, or never answered."""


class Server(Protocol):
    """A server of one model at a time."""

    @property
    def name(self) -> str:
        """As in the figures."""
        ...

    async def start(self, model: Model) -> None:
        """Returns when it answers right. ServerFailedError."""
        ...

    def ask(self, model: Model, rows: int) -> Ask:
        """A request to it."""
        ...

    @property
    def measured(self) -> Sequence[int]:
        """Processes whose trees are the server: their CPU time and memory count."""
        ...

    @property
    def everything(self) -> Sequence[int]:
        """Processes whose trees run beside it because of it; frozen with it."""
        ...

    async def end(self) -> None:
        """Ends all it started; harmless when it has not."""
        ...


class OwnProcess:
    """A server that is one command."""

    def __init__(self, name: str, first_port: int) -> None:
        self._name = name
        self.first_port = first_port
        self._started: Started | None = None
        self._scratch: tempfile.TemporaryDirectory[str] | None = None

    @property
    def name(self) -> str:
        """As in the figures."""
        return self._name

    @property
    def measured(self) -> Sequence[int]:
        """The process and its helpers."""
        return [self._started.pid] if self._started else []

    everything = measured

    async def run(self, command: Sequence[str], environment: Mapping[str, str], ask: Ask, folder: Path) -> None:
        """Starts it with a folder of its own for temporary files; returns when it answers right."""
        self._scratch = tempfile.TemporaryDirectory(prefix="bench-", ignore_cleanup_errors=True)
        own = {**outer_environment(), **environment, "TMPDIR": self._scratch.name}
        self._started = Started(command, own, WORK / "logs" / f"{self._name}.log", folder)
        await answering(ask, self._started)

    async def end(self) -> None:
        """Ends it and removes its temporary files."""
        if self._started is not None:
            await self._started.end()
            self._started = None
        if self._scratch is not None:
            self._scratch.cleanup()
            self._scratch = None


def first_ports() -> Iterator[int]:
    """Where each of several servers may look for free ports, from there up."""
    return iter(range(FIRST_PORT, 32_000, PORTS_A_SERVER))


def outer_environment() -> dict[str, str]:
    """This process's variables without those that would configure a Treadle or a Python; one thread for OpenMP."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("TREADLE_", "PYTHON", "BENCH_"))}
    return {**kept, "OMP_NUM_THREADS": "1"}


async def answering(ask: Ask, started: Started) -> None:
    """Asks until the right answer comes; ServerFailedError when the process ends or takes too long."""
    last: Exception | None = None
    try:
        async with asyncio.timeout(_READY_SECONDS):
            while not started.ended:
                try:
                    await asyncio.to_thread(clients.once, ask)
                except (OSError, grpc.RpcError, WrongAnswerError) as error:
                    last = error
                else:
                    return
                await asyncio.sleep(_POLL_SECONDS)
    except TimeoutError:
        raise ServerFailedError(f"no right answer within {_READY_SECONDS:g} s: {last!r:.300}") from None
    raise ServerFailedError(f"it ended: {started.last_words()}; log: {started.log}")
