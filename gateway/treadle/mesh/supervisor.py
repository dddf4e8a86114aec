"""`Mesh` runs all services of a mesh as child processes.

    async with Mesh(Path(".treadle")) as mesh:       # all services are ready
        AsyncClient(mesh.address("gateway"))
        await mesh.stop("features")                  # drained; it stays stopped
        await mesh.start("features")                 # returns when it serves
        mesh.kill("inference")                       # like a crash; the supervisor starts it again

The supervisor imports neither grpc nor numpy: it checks health over a plain socket.
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
from treadle.mesh.service_process import ServiceProcess, exit_text
from treadle.mesh.services import BASE_PORT, GATEWAY, SERVICES, TRACES, MeshPlan

# Services are stopped in this order: the gateway first, services that others write to last.
_STOP_ORDER = ((GATEWAY,), ("features", "inference", "evaluation"), ("registry",), (TRACES,))
# The default of TREADLE_DRAIN_SECONDS, and the time that a drained process needs to exit.
_DRAIN_SECONDS, _EXIT_SECONDS = 10.0, 5.0
_KEPT_LOGS = 5
_MESH_VARIABLES = ("TREADLE_LISTEN", "TREADLE_METRICS_LISTEN", "TREADLE_GATEWAY_REST_LISTEN")


def _ignore_notice(_service: str, _text: str) -> None:
    """Ignores the notice."""


class Mesh:
    """Supervises the services of one mesh, or some of them.

    `notice(service, event)` is called when a process ends and when it serves again.
    """

    def __init__(
        self,
        home: Path = Path(DEFAULT_HOME),
        base_port: int = BASE_PORT,
        project: Path | None = None,
        *,
        services: Sequence[str] = tuple(SERVICES),
        environ: Mapping[str, str] = os.environ,
        notice: Callable[[str, str], None] = _ignore_notice,
        ready_within_seconds: float = 60.0,
        colocate: bool = False,
    ) -> None:
        self.plan = MeshPlan(home.resolve(), base_port, project, colocate)
        self._names = [_check_name(name) for name in services]
        self._environ = environ
        self._notice = notice
        self._ready_within_seconds = ready_within_seconds
        self._grace_seconds = _drain_seconds(environ) + _EXIT_SECONDS
        self._processes: dict[str, ServiceProcess] = {}
        self._open = AsyncExitStack()
        self.down = asyncio.Event()
        """Set by `treadle down`: the owner of the mesh then leaves its context."""

    async def __aenter__(self) -> Self:
        _refuse_overridden_variables(self._environ)
        _require_no_running_mesh(self.plan.home)
        require_free(self.plan, self._names)
        try:
            self._create_processes()
            await self._start_all()
            control = await self._open.enter_async_context(serve_control(self.plan.home, self._handle))
            self._write_mesh_file(str(control))
        except BaseException:
            self.kill_all()
            await self.__aexit__(None, None, None)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for group in _STOP_ORDER:
            stopping = {self._processes[name] for name in group if name in self._processes}
            await asyncio.gather(*(process.stop(self._grace_seconds) for process in stopping))
        await self._open.aclose()

    def address(self, name: str) -> str:
        """The gRPC address of a service."""
        return self.plan.address(_check_name(name))

    @property
    def rest_address(self) -> str:
        """ "host:port" of the REST API and its documentation."""
        return self.plan.rest_address

    @property
    def processes(self) -> dict[str, int]:
        """The process ids of the running services, by service."""
        return {name: process.pid for name, process in self._processes.items() if process.pid is not None}

    @property
    def services(self) -> dict[str, dict[str, Any]]:
        """State, process id, restarts, address and log of each service."""
        return {
            name: {
                "state": process.state.value,
                "pid": process.pid,
                "restarts": process.restarts,
                "address": self.plan.address(name),
                "log": str(process.log),
            }
            for name, process in self._processes.items()
        }

    def log(self, name: str) -> Path:
        """The log file of a service: one JSON object a line."""
        return self.plan.home / "logs" / f"{self.plan.process_members(_check_name(name))[0]}.jsonl"

    def kill(self, name: str) -> None:
        """Kills the process of a service; it is restarted after a delay. `ready` waits for that."""
        self._processes[_check_name(name)].kill()

    async def stop(self, name: str) -> None:
        """Drains a service and stops it. It stays stopped."""
        await self._processes[_check_name(name)].stop(self._grace_seconds)

    async def start(self, name: str) -> None:
        """Starts a stopped service and returns when it serves. CommandError if it does not start."""
        self._processes[_check_name(name)].start()
        await self._wait_until_ready(name)

    async def ready(self, name: str) -> None:
        """Waits until a service serves, through any number of restarts. TimeoutError after `ready_within_seconds`."""
        async with asyncio.timeout(self._ready_within_seconds):
            await self._processes[_check_name(name)].serving()

    def kill_all(self) -> None:
        """Kills every process, without draining."""
        for process in self._processes.values():
            process.kill_for_good()

    async def _start_all(self) -> None:
        """Starts all services at once. CommandError as soon as one of them does not start."""
        # Services in one process share an object, whose second start does nothing.
        for process in self._processes.values():
            process.start()
        waits = [asyncio.create_task(self._wait_until_ready(name)) for name in self._processes]
        try:
            await asyncio.gather(*waits)
        finally:
            for wait in waits:
                wait.cancel()
            await asyncio.wait(waits)

    def _create_processes(self) -> None:
        (self.plan.home / "logs").mkdir(parents=True, exist_ok=True)
        parent_pipe, write_end = os.pipe()
        self._open.callback(os.close, parent_pipe)
        self._open.callback(os.close, write_end)
        for name in self._names:
            members = self.plan.process_members(name)
            if name == members[0]:
                _rotate(self.log(name))
                self._processes[name] = self._create_process(members, parent_pipe)
            else:
                self._processes[name] = self._processes[members[0]]

    def _create_process(self, services: Sequence[str], parent_pipe: int) -> ServiceProcess:
        name = services[0]
        environment = self.plan.environment(name, self._environ)
        address = self.plan.address(name)
        return ServiceProcess(name, address, environment, self.log(name), parent_pipe, self._notice, serves=services)

    def _write_mesh_file(self, control: str) -> None:
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
        """Handles the requests of `treadle stop`, `start`, `status` and `down` on the control socket."""
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

    async def _wait_until_ready(self, name: str) -> None:
        process = self._processes[name]
        try:
            async with asyncio.timeout(self._ready_within_seconds):
                ready = await process.ready()
        except TimeoutError:
            raise CommandError(
                f"{name} was not ready within {self._ready_within_seconds:g} s", f"see its log: {process.log}"
            ) from None
        if not ready:
            raise CommandError(
                f"{name} did not start ({exit_text(process.last_exit or 0)}): {_last_event(process.log)}",
                f"see its log: {process.log}",
            )


def _check_name(name: str) -> str:
    if name not in SERVICES:
        raise CommandError(f"no service {name!r}", f"one of {', '.join(SERVICES)}", code="NOT_FOUND")
    return name


def _drain_seconds(environ: Mapping[str, str]) -> float:
    text = environ.get("TREADLE_DRAIN_SECONDS", "")
    try:
        return float(text or _DRAIN_SECONDS)
    except ValueError:
        raise CommandError(f"TREADLE_DRAIN_SECONDS must be a number, not {text!r}") from None


def _refuse_overridden_variables(environ: Mapping[str, str]) -> None:
    """Refuses variables that the supervisor would override, so that no setting is silently ignored."""
    given = sorted(name for name, value in environ.items() if value)
    tls = [name for name in given if name.startswith("TREADLE_TLS_")]
    if tls:
        raise CommandError(
            f"`treadle up` keeps to loopback and speaks no TLS, but {', '.join(tls)} is set",
            "unset it here; for TLS between machines start each service with `treadle serve`",
        )
    addresses = [name for name in given if name in _MESH_VARIABLES or name.startswith("TREADLE_PEER_")]
    if addresses:
        raise CommandError(
            f"`treadle up` chooses the addresses of its services, but {', '.join(addresses)} is set",
            "unset it here, and say --base-port; for addresses of your own start each service with `treadle serve`",
        )


def _require_no_running_mesh(home: Path) -> None:
    other = MeshFile.read(home)
    if other is not None and other.supervisor_pid != os.getpid():
        raise CommandError(
            f"a mesh runs in {home} already (process {other.supervisor_pid})",
            "use it, end it with Ctrl-C or `treadle down`, or choose another --home and --base-port",
        )


def _rotate(log: Path) -> None:
    """Rotates logs: features.jsonl becomes features.1.jsonl, and so on; the oldest is overwritten."""
    for number in range(_KEPT_LOGS - 1, 0, -1):
        older = log.with_suffix(f".{number}.jsonl")
        newer = log if number == 1 else log.with_suffix(f".{number - 1}.jsonl")
        if newer.exists():
            newer.replace(older)


def _last_event(log: Path) -> str:
    """The event in the last line of a log, or the line itself if it is no JSON object."""
    with log.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - 65_536))
        lines = file.read().decode(errors="replace").strip().splitlines()
    if not lines:
        return "it wrote nothing"
    try:
        return str(json.loads(lines[-1])["event"])
    except (ValueError, TypeError, KeyError):
        return lines[-1][:400]
