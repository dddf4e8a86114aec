"""A member inside an Envoy, for tests in another process.

It asks the test over a socket what to answer, so that one test, with its own functions and events, can look at a
service on either host. `python remote_member.py SOCKET` becomes the Envoy.
"""

import asyncio
import itertools
import os
import pickle
import sys
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from member import Member, finished_spans, opener

from treadle.observability.telemetry.telemetry import Telemetry
from treadle.rpc import context
from treadle.rpc.app.serving import running
from treadle.rpc.hosts.envoy.host import EnvoyProcess
from treadle.rpc.hosts.listen import Listen

SOCKET = "REMOTE_MEMBER_SOCKET"


@dataclass(frozen=True)
class Told:
    """What the member is started with."""

    listen: Listen
    home: Path
    drain_seconds: float
    http: bool


async def send(writer: asyncio.StreamWriter, *message: Any) -> None:
    data = zlib.compress(pickle.dumps(message), 1)  # answers of megabytes would fill the socket
    writer.write(len(data).to_bytes(8, "big") + data)
    await writer.drain()


async def receive(reader: asyncio.StreamReader) -> Any:
    size = int.from_bytes(await reader.readexactly(8), "big")
    return pickle.loads(zlib.decompress(await reader.readexactly(size)))


class Remote:
    """The member's side of the socket."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self._ids = itertools.count()
        self._waiting: dict[int, asyncio.Future[str]] = {}
        self.member = Member(self._ask)

    async def _ask(self, name: str) -> str:
        number = next(self._ids)
        self._waiting[number] = asyncio.get_running_loop().create_future()
        call = context.current()
        await send(self._writer, "asked", number, name, call)
        try:
            return await self._waiting[number]
        except asyncio.CancelledError:
            await send(self._writer, "cancelled", number)
            raise

    async def listen(self, telemetry: Telemetry) -> None:
        while True:
            kind, number, value = await receive(self._reader)
            if kind == "spans":
                await send(self._writer, "sampled", number, finished_spans(telemetry))
                continue
            if kind == "sample":
                found = telemetry.meters.registry.get_sample_value(*value)
                await send(self._writer, "sampled", number, found)
                continue
            waiting = self._waiting.pop(number)
            if waiting.done():
                continue
            if kind == "answer":
                waiting.set_result(value)
            elif isinstance(value, asyncio.CancelledError):
                waiting.cancel()
            else:
                waiting.set_exception(value)

    async def say_ended(self) -> None:
        while True:
            await self.member.ended.wait()
            self.member.ended.clear()
            await send(self._writer, "ended", 0)


async def life(process: EnvoyProcess) -> None:
    reader, writer = await asyncio.open_unix_connection(os.environ[SOCKET])
    told: Told = (await receive(reader))[1]
    telemetry, remote = Telemetry.recording(), Remote(reader, writer)
    tasks = [asyncio.create_task(remote.listen(telemetry)), asyncio.create_task(remote.say_ended())]
    serving = running(
        opener(remote.member, http=told.http),
        None,
        home=told.home,
        telemetry=telemetry,
        listen=told.listen,
        drain_seconds=told.drain_seconds,
        make_host=process.host,
    )
    async with serving as address:
        process.started.set()
        await send(writer, "serving", 0, address)
        await process.stopping.wait()
    for task in tasks:
        task.cancel()


app = EnvoyProcess(life)


def main(socket: str, pickled: str) -> None:
    from treadle.rpc.hosts.envoy.config import EnvoySettings
    from treadle.rpc.hosts.envoy.process import become_envoy

    told: Told = pickle.loads(bytes.fromhex(pickled))
    settings = EnvoySettings("remote_member:app", [told.listen])
    become_envoy(settings, {**os.environ, SOCKET: socket}, drain_seconds=told.drain_seconds)


if __name__ == "__main__":
    main(*sys.argv[1:])
