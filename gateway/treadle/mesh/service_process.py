"""`ServiceProcess`: starts the process of a service, watches it, and restarts it when it ends."""

import asyncio
import contextlib
import signal
import sys
from asyncio.subprocess import Process
from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from pathlib import Path

from treadle.core.tasks import cancel_and_wait
from treadle.mesh.health import HealthStatus, check

_POLL_SECONDS = 0.05
_MIN_RESTART_DELAY_SECONDS = 0.2
_MAX_RESTART_DELAY_SECONDS = 10.0
# A process that ran this long failed for a new reason: the delays of restarts begin anew.
_STABLE_SECONDS = 30.0


class ProcessState(StrEnum):
    """The state of a service's process."""

    STARTING = "starting"
    READY = "ready"
    WAITING = "waiting to start again"
    STOPPED = "stopped"


class ServiceProcess:
    """Keeps a child process running until it is stopped.

    `parent_pipe` is the read end of a pipe, which the child gets as its standard input. When the supervisor ends for
    any reason, the kernel closes the write end and the child ends itself (`parent_watch`). This works on every Unix,
    and a pipe belongs to the process, whereas `PR_SET_PDEATHSIG` belongs to the thread that started the child.
    """

    def __init__(
        self,
        name: str,
        address: str,
        environment: Mapping[str, str],
        log: Path,
        parent_pipe: int,
        notice: Callable[[str, str], None],
        *,
        serves: Sequence[str] = (),
    ) -> None:
        """`serves` names the services of the process, if it has others than `name`."""
        self.name = name
        self._serves = tuple(serves) or (name,)
        self.address = address
        self.log = log
        self.restarts = 0
        self.state = ProcessState.STOPPED
        self.last_exit: int | None = None
        self._environment = dict(environment)
        self._parent_pipe = parent_pipe
        self._notice = notice
        self._process: Process | None = None
        self._restart_task: asyncio.Task[None] | None = None
        self._ready = asyncio.Event()
        self._ended = asyncio.Event()
        self._was_ready = False

    @property
    def pid(self) -> int | None:
        """The id of the running process; None if there is none."""
        return self._process.pid if self._process is not None and self._process.returncode is None else None

    def start(self) -> None:
        """Starts the process and the task that restarts it. Does nothing if they run."""
        if self._restart_task is None or self._restart_task.done():
            self._restart_task = asyncio.create_task(self._run_with_restarts(), name=f"keep {self.name}")

    async def ready(self) -> bool:
        """Waits until the process serves. False if it ends before it has ever served."""
        waits = [asyncio.ensure_future(event.wait()) for event in (self._ready, self._ended)]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
        return self._ready.is_set()

    async def serving(self) -> None:
        """Waits until the process serves, through any number of restarts."""
        await self._ready.wait()

    async def stop(self, grace_seconds: float) -> None:
        """Asks the process to drain (SIGTERM) and kills it after `grace_seconds`. It stays stopped."""
        if self._restart_task is not None:
            await cancel_and_wait(self._restart_task)
            self._restart_task = None
        process, self._process = self._process, None
        if process is not None and process.returncode is None:
            _signal(process, signal.SIGTERM)
            try:
                async with asyncio.timeout(grace_seconds):
                    await process.wait()
            except TimeoutError:
                self._notice(self.name, f"did not drain in {grace_seconds:g} s: killed")
                _signal(process, signal.SIGKILL)
                await process.wait()
        self._set_state(ProcessState.STOPPED)

    def kill(self) -> None:
        """Kills the process; it is restarted as after a crash."""
        if self._process is not None and self._process.returncode is None:
            self._set_state(ProcessState.WAITING)
            _signal(self._process, signal.SIGKILL)

    def kill_for_good(self) -> None:
        """Kills the process without a restart."""
        if self._restart_task is not None:
            self._restart_task.cancel()
        self.kill()

    async def _run_with_restarts(self) -> None:
        loop = asyncio.get_running_loop()
        failures = 0
        while True:
            started = loop.time()
            self._process = await self._spawn()
            watcher = asyncio.create_task(self._watch(again=failures > 0), name=f"watch {self.name}")
            try:
                self.last_exit = await self._process.wait()
            finally:
                watcher.cancel()
            if not self._was_ready:  # it has never served: a restart would not help
                self._set_state(ProcessState.STOPPED)
                self._ended.set()
                return
            failures = 1 if loop.time() - started > _STABLE_SECONDS else failures + 1
            delay = min(_MIN_RESTART_DELAY_SECONDS * 2 ** (failures - 1), _MAX_RESTART_DELAY_SECONDS)
            self._set_state(ProcessState.WAITING)
            how = exit_text(self.last_exit)
            self._notice(self.name, f"ended ({how}); starting it again in {delay:g} s; log: {self.log}")
            await asyncio.sleep(delay)
            self.restarts += 1

    async def _spawn(self) -> Process:
        self._ended.clear()
        self._set_state(ProcessState.STARTING)
        with self.log.open("ab") as log:
            return await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "treadle.cli.main",
                "serve",
                *self._serves,
                stdin=self._parent_pipe,
                stdout=log,
                stderr=log,
                env=self._environment,
                process_group=0,  # Ctrl-C signals only the supervisor, which stops the services in order
            )

    async def _watch(self, again: bool) -> None:
        """Polls the health of the new process until it serves."""
        while await check(self.address, timeout_seconds=1.0) is not HealthStatus.SERVING:  # noqa: ASYNC110  # the process cannot notify
            await asyncio.sleep(_POLL_SECONDS)
        self._set_state(ProcessState.READY)
        if again:
            self._notice(self.name, "is back")

    def _set_state(self, state: ProcessState) -> None:
        self.state = state
        if state is ProcessState.READY:
            self._was_ready = True
            self._ready.set()
        else:
            self._ready.clear()


def _signal(process: Process, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(number)


def exit_text(code: int) -> str:
    """An exit status as text: "killed by SIGKILL", "exit status 1"."""
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"
