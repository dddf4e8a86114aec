"""`Mesh`: all services of a mesh as child processes of this one.

    async with Mesh(Path(".treadle")) as mesh:       # ready when this line is passed
        AsyncClient(mesh.address("gateway"))
        await mesh.stop("features")                  # drained, and stays down
        await mesh.start("features")                 # serves again when this returns
        mesh.kill("inference")                       # as a crash would; the supervisor starts it again

The supervisor imports neither grpc nor numpy: it asks for health over a plain socket.
"""

import asyncio
import json
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from treadle.mesh.control import serve_control
from treadle.mesh.errors import CommandError
from treadle.mesh.meshfile import DEFAULT_HOME, MeshFile
from treadle.mesh.ports import require_free
from treadle.mesh.services import BASE_PORT, GATEWAY, SERVICES, TRACES, Plan
from treadle.mesh.worker import Worker, how_ended

# What takes requests goes first, what others write to goes last.
_DRAIN = ((GATEWAY,), ("features", "inference", "evaluation"), ("registry",), (TRACES,))
# How long a service drains unless TREADLE_DRAIN_SECONDS says so, and what its process needs besides to end by itself.
_DRAIN_SECONDS, _MARGIN_SECONDS = 10.0, 5.0
_LOGS_KEPT = 5
_OWN_ADDRESSES = ("TREADLE_LISTEN", "TREADLE_METRICS_LISTEN", "TREADLE_GATEWAY_REST_LISTEN")


def _silent(_service: str, _text: str) -> None:
    """Nobody listens."""


class Mesh:
    """The services of one mesh, or some of them. `notice(service, what happened)` hears of deaths and returns."""

    def __init__(
        self,
        home: Path = Path(DEFAULT_HOME),
        base_port: int = BASE_PORT,
        project: Path | None = None,
        *,
        services: Sequence[str] = tuple(SERVICES),
        environ: Mapping[str, str] = os.environ,
        notice: Callable[[str, str], None] = _silent,
        ready_within_seconds: float = 60.0,
        colocate: bool = False,
    ) -> None:
        self.plan = Plan(home.resolve(), base_port, project, colocate)
        self._names = [_known(name) for name in services]
        self._environ = environ
        self._notice = notice
        self._ready_within_seconds = ready_within_seconds
        self._grace_seconds = _drain_seconds(environ) + _MARGIN_SECONDS
        self._workers: dict[str, Worker] = {}
        self._open = AsyncExitStack()
        self.down = asyncio.Event()
        """Set when another command asked for the end of the mesh: leave its context then."""

    async def __aenter__(self) -> Self:
        _require_nothing_ignored(self._environ)
        _require_no_other(self.plan.home)
        require_free(self.plan, self._names)
        try:
            self._make_workers()
            await self._start_all()
            control = await self._open.enter_async_context(serve_control(self.plan.home, self._handle))
            self._write_down(str(control))
        except BaseException:
            self.kill_all()
            await self.__aexit__(None, None, None)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for group in _DRAIN:
            leaving = {self._workers[name] for name in group if name in self._workers}
            await asyncio.gather(*(worker.stop(self._grace_seconds) for worker in leaving))
        await self._open.aclose()

    def address(self, name: str) -> str:
        """The gRPC address of a service."""
        return self.plan.address(_known(name))

    @property
    def rest_address(self) -> str:
        """ "host:port" of REST, OpenAPI and docs."""
        return self.plan.rest_address

    @property
    def processes(self) -> dict[str, int]:
        """Process ids of the services that live now."""
        return {name: worker.pid for name, worker in self._workers.items() if worker.pid is not None}

    @property
    def services(self) -> dict[str, dict[str, Any]]:
        """What the supervisor knows of each service."""
        return {
            name: {
                "state": worker.state.value,
                "pid": worker.pid,
                "restarts": worker.restarts,
                "address": self.plan.address(name),
                "log": str(worker.log),
            }
            for name, worker in self._workers.items()
        }

    def log(self, name: str) -> Path:
        """Where a service writes, one JSON object a line."""
        return self.plan.home / "logs" / f"{self.plan.together(_known(name))[0]}.jsonl"

    def kill(self, name: str) -> None:
        """Ends a service's process at once; it is started again after a moment. `ready` waits for that."""
        self._workers[_known(name)].kill()

    async def stop(self, name: str) -> None:
        """Drains a service and keeps it down."""
        await self._workers[_known(name)].stop(self._grace_seconds)

    async def start(self, name: str) -> None:
        """Starts a service that was stopped; returns when it serves."""
        self._workers[_known(name)].start()
        await self._until_ready(name)

    async def ready(self, name: str) -> None:
        """Waits until a service serves, however often it has to be started again."""
        async with asyncio.timeout(self._ready_within_seconds):
            await self._workers[_known(name)].serving()

    def kill_all(self) -> None:
        """Ends every process now, without drain."""
        for worker in self._workers.values():
            worker.abandon()

    async def _start_all(self) -> None:
        """Starts all at once; the first that can't start ends the waiting for the others."""
        for worker in self._workers.values():  # one that runs already is left alone
            worker.start()
        waits = [asyncio.create_task(self._until_ready(name)) for name in self._workers]
        try:
            await asyncio.gather(*waits)
        finally:
            for wait in waits:
                wait.cancel()
            await asyncio.wait(waits)

    def _make_workers(self) -> None:
        (self.plan.home / "logs").mkdir(parents=True, exist_ok=True)
        lifeline, held = os.pipe()
        self._open.callback(os.close, lifeline)
        self._open.callback(os.close, held)
        for name in self._names:
            together = self.plan.together(name)
            if name == together[0]:
                _rotate(self.log(name))
                self._workers[name] = self._worker(together, lifeline)
            else:
                self._workers[name] = self._workers[together[0]]

    def _worker(self, services: Sequence[str], lifeline: int) -> Worker:
        name = services[0]
        environment = self.plan.environment(name, self._environ)
        address = self.plan.address(name)
        return Worker(name, address, environment, self.log(name), lifeline, self._notice, serves=services)

    def _write_down(self, control: str) -> None:
        plan = self.plan
        MeshFile(
            supervisor_pid=os.getpid(),
            control=control,
            addresses={name: plan.address(name) for name in self._names},
            rest=plan.rest_address,
            metrics={name: plan.metrics_address(name) for name in self._names},
            logs={name: str(self.log(name)) for name in self._names},
            pids=self.processes,
        ).write(plan.home)
        self._open.callback(MeshFile.remove, plan.home)

    async def _handle(self, request: Mapping[str, Any]) -> Mapping[str, Any]:
        """What `treadle stop`, `start`, `status` and `down` ask through the control socket."""
        name = str(request.get("service", ""))
        match request.get("do"):
            case "stop":
                await self.stop(name)
            case "start":
                await self.start(name)
            case "down":
                self.down.set()
            case "status":
                pass
            case other:
                raise CommandError(f"the supervisor can't {other!r}", "it can stop, start, status, down")
        return {"services": self.services}

    async def _until_ready(self, name: str) -> None:
        worker = self._workers[name]
        try:
            async with asyncio.timeout(self._ready_within_seconds):
                ready = await worker.ready()
        except TimeoutError:
            raise CommandError(
                f"{name} was not ready within {self._ready_within_seconds:g} s", f"see its log: {worker.log}"
            ) from None
        if not ready:
            raise CommandError(
                f"{name} did not start ({how_ended(worker.last_exit or 0)}): {_last_words(worker.log)}",
                f"see its log: {worker.log}",
            )


def _known(name: str) -> str:
    if name not in SERVICES:
        raise CommandError(f"no service {name!r}", f"one of {', '.join(SERVICES)}", code="NOT_FOUND")
    return name


def _drain_seconds(environ: Mapping[str, str]) -> float:
    text = environ.get("TREADLE_DRAIN_SECONDS", "")
    try:
        return float(text or _DRAIN_SECONDS)
    except ValueError:
        raise CommandError(f"TREADLE_DRAIN_SECONDS must be a number, not {text!r}") from None


def _require_nothing_ignored(environ: Mapping[str, str]) -> None:
    """What the supervisor would have to override is refused, so that no setting is silently without effect."""
    given = sorted(name for name, value in environ.items() if value)
    tls = [name for name in given if name.startswith("TREADLE_TLS_")]
    if tls:
        raise CommandError(
            f"`treadle up` keeps to loopback and speaks no TLS, but {', '.join(tls)} is set",
            "unset it here; for TLS between machines start each service with `treadle serve`",
        )
    addresses = [name for name in given if name in _OWN_ADDRESSES or name.startswith("TREADLE_PEER_")]
    if addresses:
        raise CommandError(
            f"`treadle up` chooses the addresses of its services, but {', '.join(addresses)} is set",
            "unset it here, and say --base-port; for addresses of your own start each service with `treadle serve`",
        )


def _require_no_other(home: Path) -> None:
    other = MeshFile.read(home)
    if other is not None and other.supervisor_pid != os.getpid():
        raise CommandError(
            f"a mesh runs in {home} already (process {other.supervisor_pid})",
            "use it, end it with Ctrl-C or `treadle down`, or choose another --home and --base-port",
        )


def _rotate(log: Path) -> None:
    """features.jsonl becomes features.1.jsonl, and so on; the oldest goes."""
    for number in range(_LOGS_KEPT - 1, 0, -1):
        older = log.with_suffix(f".{number}.jsonl")
        newer = log if number == 1 else log.with_suffix(f".{number - 1}.jsonl")
        if newer.exists():
            newer.replace(older)


def _last_words(log: Path) -> str:
    """What the last line of a log says."""
    with log.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - 65_536))
        lines = file.read().decode(errors="replace").strip().splitlines()
    if not lines:
        return "it wrote nothing"
    try:
        return str(json.loads(lines[-1])["event"])
    except (ValueError, TypeError, KeyError):
        return lines[-1][:400]
