"""One service's process: started, watched, started again when it dies."""

import asyncio
import contextlib
import signal
import sys
from asyncio.subprocess import Process
from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from pathlib import Path

from treadle.core.tasks import cancel_and_wait
from treadle.mesh.health import Health, check

_POLL_SECONDS = 0.05
_FIRST_DELAY_SECONDS = 0.2
_LONGEST_DELAY_SECONDS = 10.0
# A process that lived this long died of something new: the delays start again.
_STEADY_SECONDS = 30.0


class State(StrEnum):
    """Where a service is in its life."""

    STARTING = "starting"
    READY = "ready"
    WAITING = "waiting to start again"
    STOPPED = "stopped"


class Worker:
    """Keeps one child process alive until told to stop.

    `lifeline` is the read end of a pipe that the child gets as its standard input: when the supervisor is gone,
    however it went, the kernel closes the other end and the child ends itself. That works on every Unix, and where
    `PR_SET_PDEATHSIG` would be tied to the thread that started the child, a pipe is tied to the process.
    """

    def __init__(
        self,
        name: str,
        address: str,
        environment: Mapping[str, str],
        log: Path,
        lifeline: int,
        notice: Callable[[str, str], None],
        *,
        serves: Sequence[str] = (),
    ) -> None:
        """`serves`: the services of the process, where they are more than `name`."""
        self.name = name
        self._serves = tuple(serves) or (name,)
        self.address = address
        self.log = log
        self.restarts = 0
        self.state = State.STOPPED
        self.last_exit: int | None = None
        self._environment = dict(environment)
        self._lifeline = lifeline
        self._notice = notice
        self._process: Process | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._ready = asyncio.Event()
        self._ended = asyncio.Event()
        self._was_ready = False

    @property
    def pid(self) -> int | None:
        """Of the live process; None when there is none."""
        return self._process.pid if self._process is not None and self._process.returncode is None else None

    def start(self) -> None:
        """Starts the process and its keeper; nothing when they run."""
        if self._keeper is None or self._keeper.done():
            self._keeper = asyncio.create_task(self._keep(), name=f"keep {self.name}")

    async def ready(self) -> bool:
        """Waits until the process answers SERVING. False when it ends before it ever did."""
        waits = [asyncio.ensure_future(event.wait()) for event in (self._ready, self._ended)]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
        return self._ready.is_set()

    async def serving(self) -> None:
        """Waits until it serves, however often it has to be started again."""
        await self._ready.wait()

    async def stop(self, grace_seconds: float) -> None:
        """Asks the process to drain, waits for it, kills it when the grace is over. It stays down."""
        if self._keeper is not None:
            await cancel_and_wait(self._keeper)
            self._keeper = None
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
        self._is(State.STOPPED)

    def kill(self) -> None:
        """Ends the process at once, as a crash would; its keeper starts it again."""
        if self._process is not None and self._process.returncode is None:
            self._is(State.WAITING)
            _signal(self._process, signal.SIGKILL)

    def abandon(self) -> None:
        """Ends the process at once, for good."""
        if self._keeper is not None:
            self._keeper.cancel()
        self.kill()

    async def _keep(self) -> None:
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
            if not self._was_ready:  # it is wrong from the start: trying again would not help
                self._is(State.STOPPED)
                self._ended.set()
                return
            failures = 1 if loop.time() - started > _STEADY_SECONDS else failures + 1
            delay = min(_FIRST_DELAY_SECONDS * 2 ** (failures - 1), _LONGEST_DELAY_SECONDS)
            self._is(State.WAITING)
            how = how_ended(self.last_exit)
            self._notice(self.name, f"ended ({how}); starting it again in {delay:g} s; log: {self.log}")
            await asyncio.sleep(delay)
            self.restarts += 1

    async def _spawn(self) -> Process:
        self._ended.clear()
        self._is(State.STARTING)
        with self.log.open("ab") as log:
            return await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "treadle.cli.main",
                "serve",
                *self._serves,
                stdin=self._lifeline,
                stdout=log,
                stderr=log,
                env=self._environment,
                process_group=0,  # Ctrl-C in the terminal reaches the supervisor alone, which drains in order
            )

    async def _watch(self, again: bool) -> None:
        """Polls until the new process serves."""
        while await check(self.address, timeout_seconds=1.0) is not Health.SERVING:  # noqa: ASYNC110  # it can't tell us
            await asyncio.sleep(_POLL_SECONDS)
        self._is(State.READY)
        if again:
            self._notice(self.name, "is back")

    def _is(self, state: State) -> None:
        self.state = state
        if state is State.READY:
            self._was_ready = True
            self._ready.set()
        else:
            self._ready.clear()


def _signal(process: Process, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(number)


def how_ended(code: int) -> str:
    """An exit status as people say it."""
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"
