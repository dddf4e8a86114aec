"""A running mesh, reached from other commands: a Unix socket, one JSON object a line each way.

{"do": "stop", "service": "features"}   ->   {"services": {...}} or {"error": {...}}
"""

import asyncio
import json
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from treadle.mesh.errors import IS_IT_RUNNING, CommandError

_NAME = "mesh.sock"
# The kernel's limit for a socket's path is 108 bytes on Linux, 104 elsewhere.
_LONGEST_PATH = 100

Handler = Callable[[Mapping[str, Any]], Awaitable[Mapping[str, Any]]]


@asynccontextmanager
async def serve_control(home: Path, handle: Handler) -> AsyncIterator[Path]:
    """Answers with what `handle` returns, or with the CommandError that it raises; yields the socket's path."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            writer.write(json.dumps(await _answer(handle, await reader.readline())).encode() + b"\n")
            await writer.drain()
        except ConnectionError:
            pass  # whoever asked is gone
        finally:
            writer.close()

    path, temporary = _path(home)
    path.unlink(missing_ok=True)
    server = await asyncio.start_unix_server(serve, path)
    path.chmod(0o600)
    try:
        yield path
    finally:
        server.close()
        path.unlink(missing_ok=True)
        if temporary:
            shutil.rmtree(path.parent, ignore_errors=True)


async def ask(path: str, do: str, service: str = "") -> dict[str, Any]:
    """Sends one request to a mesh's control socket; CommandError for its refusal, or when nobody is there."""
    try:
        reader, writer = await asyncio.open_unix_connection(path)
    except OSError:
        raise CommandError(f"no supervisor answers at {path}", IS_IT_RUNNING, "UNAVAILABLE") from None
    try:
        writer.write(json.dumps({"do": do, "service": service}).encode() + b"\n")
        line = await reader.readline()
    finally:
        writer.close()
    if not line:
        raise CommandError("the supervisor ended before it answered", IS_IT_RUNNING, "UNAVAILABLE")
    answer: dict[str, Any] = json.loads(line)
    if error := answer.get("error"):
        raise CommandError(error["message"], error["hint"], error["code"])
    return answer


async def _answer(handle: Handler, line: bytes) -> Mapping[str, Any]:
    try:
        request = json.loads(line)
        if not isinstance(request, dict):
            raise ValueError("no object")
        return await handle(request)
    except CommandError as error:
        return error.as_json()
    except ValueError:  # no JSON, or no object
        return CommandError("not a JSON object", "send one a line", "INVALID_ARGUMENT").as_json()


def _path(home: Path) -> tuple[Path, bool]:
    """Where the socket lies, and whether its folder is a temporary one (home's path is too long for a socket)."""
    path = home / _NAME
    if len(os.fsencode(path)) <= _LONGEST_PATH:
        return path, False
    return Path(tempfile.mkdtemp(prefix="treadle-")) / _NAME, True
