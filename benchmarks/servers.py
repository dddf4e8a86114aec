"""The interface of all measured servers, and waiting until a server answers."""

import asyncio
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import grpc

from benchmarks import clients
from benchmarks.models import Model
from benchmarks.processes import ServerProcess
from benchmarks.server_requests import ServerRequest, WrongAnswerError

ROOT = Path(__file__).parents[1]
WORK = ROOT / ".bench"
"""The folder of environments, trained models and logs, which can all be created again."""
FIRST_PORT = 20_000
PORTS_A_SERVER = 400
"""The distance between the port ranges of servers that start at the same time."""
_POLL_SECONDS = 0.1
_READY_SECONDS = 120.0


class ServerFailedError(Exception):
    """A server did not start, or never answered."""


class Server(Protocol):
    """A server of one model at a time."""

    @property
    def name(self) -> str:
        """The name of the server in the figures."""
        ...

    async def start(self, model: Model) -> None:
        """Starts the server and returns when it answers right. ServerFailedError otherwise."""
        ...

    def ask(self, model: Model, rows: int) -> ServerRequest:
        """A request to the server."""
        ...

    @property
    def measured(self) -> Sequence[int]:
        """The processes of the server, whose trees are measured for CPU time and memory."""
        ...

    @property
    def everything(self) -> Sequence[int]:
        """Helper processes of the server, which are frozen with it."""
        ...

    async def end(self) -> None:
        """Stops all started processes, if any."""
        ...


class SingleProcessServer:
    """A server that is started by one command."""

    def __init__(self, name: str, first_port: int) -> None:
        self._name = name
        self.first_port = first_port
        self._started: ServerProcess | None = None
        self._scratch: tempfile.TemporaryDirectory[str] | None = None

    @property
    def name(self) -> str:
        """The name of the server in the figures."""
        return self._name

    @property
    def measured(self) -> Sequence[int]:
        """The process and its helpers."""
        return [self._started.pid] if self._started else []

    everything = measured

    async def run(
        self, command: Sequence[str], environment: Mapping[str, str], ask: ServerRequest, folder: Path
    ) -> None:
        """Starts the server with its own temporary folder and returns when it answers right."""
        self._scratch = tempfile.TemporaryDirectory(prefix="bench-", ignore_cleanup_errors=True)
        own = {**outer_environment(), **environment, "TMPDIR": self._scratch.name}
        self._started = ServerProcess(command, own, WORK / "logs" / f"{self._name}.log", folder)
        await wait_until_answering(ask, self._started)

    async def end(self) -> None:
        """Stops the server and removes its temporary files."""
        if self._started is not None:
            await self._started.end()
            self._started = None
        if self._scratch is not None:
            self._scratch.cleanup()
            self._scratch = None


def first_ports() -> Iterator[int]:
    """Yields the first port of the range of each server."""
    return iter(range(FIRST_PORT, 32_000, PORTS_A_SERVER))


def outer_environment() -> dict[str, str]:
    """This process's variables without those that would configure a Treadle or a Python; one thread for OpenMP."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("TREADLE_", "PYTHON", "BENCH_"))}
    return {**kept, "OMP_NUM_THREADS": "1"}


async def wait_until_answering(ask: ServerRequest, started: ServerProcess) -> None:
    """Sends requests until one is answered right. ServerFailedError if the process ends or takes too long."""
    last: Exception | None = None
    try:
        async with asyncio.timeout(_READY_SECONDS):
            while not started.ended:
                try:
                    await asyncio.to_thread(clients.request_once, ask)
                except (OSError, grpc.RpcError, WrongAnswerError) as error:
                    last = error
                else:
                    return
                await asyncio.sleep(_POLL_SECONDS)
    except TimeoutError:
        raise ServerFailedError(f"no right answer within {_READY_SECONDS:g} s: {last!r:.300}") from None
    raise ServerFailedError(f"it ended: {started.last_words()}; log: {started.log}")
