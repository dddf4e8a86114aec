"""The test's side of a member that runs inside an Envoy: see `importable/remote_member.py`."""

import asyncio
import itertools
import pickle
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from member import Answer, Member
from remote_member import Told, receive, send

from treadle.mesh.health import listens
from treadle.rpc import context
from treadle.rpc.app.ports import probe_port
from treadle.rpc.hosts.listen import Listen

PROGRAM = Path(__file__).parent / "importable" / "remote_member.py"


class Bridge:
    """Answers what the member asks with the test's functions."""

    def __init__(self, answer: Answer) -> None:
        self.member = Member(answer)
        self.address: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._samples: dict[int, asyncio.Future[Any]] = {}
        self._ids = itertools.count()
        self._writer: asyncio.StreamWriter

    async def serve(self, told: Told, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writer = writer
        await send(writer, "told", told)
        try:
            while True:
                self._heard(*await receive(reader))
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    def _heard(self, kind: str, number: int, *rest: Any) -> None:
        match kind:
            case "asked":
                self._tasks[number] = asyncio.create_task(self._answer(number, *rest))
            case "cancelled":
                self._tasks[number].cancel()
            case "ended":
                self.member.ended.set()
            case "serving":
                self.address.set_result(rest[0])
            case "sampled":
                self._samples.pop(number).set_result(rest[0])

    async def _answer(self, number: int, name: str, call: context.RequestContext) -> None:
        self.member.calls.append(call)
        try:
            answered: tuple[str, int, object] = ("answer", number, await self.member.answer(name))
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            answered = ("error", number, error)
        except Exception as error:
            answered = ("error", number, error)
        await send(self._writer, *answered)

    async def sample(self, name: str, labels: dict[str, str]) -> float | None:
        """A metric of the member's process."""
        found: float | None = await self._look_up("sample", (name, labels))
        return found

    async def spans(self) -> list[tuple[str, str, str]]:
        """The finished spans of the member's process."""
        found: list[tuple[str, str, str]] = await self._look_up("spans", None)
        return found

    async def _look_up(self, kind: str, what: Any) -> Any:
        number = next(self._ids)
        self._samples[number] = asyncio.get_running_loop().create_future()
        await send(self._writer, kind, number, what)
        return await self._samples[number]


@asynccontextmanager
async def in_envoy(
    answer: Answer, folder: Path, *, listen: Listen | None = None, drain_seconds: float = 5.0, http: bool = False
) -> AsyncIterator[Member]:
    """A member in an Envoy of its own. Leaving it drains."""
    wanted = listen or Listen()
    told = Told(replace(wanted, address=probe_port(wanted.address)), folder, drain_seconds, http)
    bridge, socket = Bridge(answer), folder / "s"

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await bridge.serve(told, reader, writer)

    async with await asyncio.start_unix_server(connected, socket):
        process = await asyncio.create_subprocess_exec(
            sys.executable, str(PROGRAM), str(socket), pickle.dumps(told).hex()
        )
        died = asyncio.ensure_future(process.wait())
        try:
            await asyncio.wait((bridge.address, died), return_when=asyncio.FIRST_COMPLETED)
            assert bridge.address.done(), f"the Envoy ended with status {process.returncode}"
            await _listening(bridge.address.result(), process)
            bridge.member.address, bridge.member.sample = bridge.address.result(), bridge.sample
            bridge.member.spans = bridge.spans
            yield bridge.member
        finally:
            if process.returncode is None:
                process.terminate()
            await died
        assert process.returncode == 0


async def _listening(address: str, process: asyncio.subprocess.Process) -> None:
    """Envoy opens its port once its application has started."""
    while not await listens(address):
        assert process.returncode is None, f"the Envoy ended with status {process.returncode}"
        await asyncio.sleep(0.01)
