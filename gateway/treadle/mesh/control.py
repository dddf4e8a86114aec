"""The control socket of a running mesh: other commands send it requests, one JSON object a line each way.

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

from treadle.mesh.errors import NOT_RUNNING_HINT, CommandError

_NAME = "mesh.sock"
# The kernel's limit for a socket's path is 108 bytes on Linux, 104 elsewhere.
_MAX_PATH_BYTES = 100

Handler = Callable[[Mapping[str, Any]], Awaitable[Mapping[str, Any]]]


@asynccontextmanager
async def serve_control(home: Path, handle: Handler) -> AsyncIterator[Path]:
    """Serves the control socket of a mesh and yields its path.

    A request is answered with the result of `handle`, or with the CommandError that it raises.
    """

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            writer.write(json.dumps(await _response(handle, await reader.readline())).encode() + b"\n")
            await writer.drain()
        except ConnectionError:
            pass  # the client has disconnected
        finally:
            writer.close()

    path, temporary = _socket_path(home)
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


async def send_command(path: str, do: str, service: str = "") -> dict[str, Any]:
    """Sends a request to the control socket of a mesh and returns the response.

    CommandError if the supervisor refuses the request, or if there is none.
    """
    try:
        reader, writer = await asyncio.open_unix_connection(path)
    except OSError:
        raise CommandError(f"no supervisor answers at {path}", NOT_RUNNING_HINT, "UNAVAILABLE") from None
    try:
        writer.write(json.dumps({"do": do, "service": service}).encode() + b"\n")
        line = await reader.readline()
    finally:
        writer.close()
    if not line:
        raise CommandError("the supervisor ended before it answered", NOT_RUNNING_HINT, "UNAVAILABLE")
    answer: dict[str, Any] = json.loads(line)
    if error := answer.get("error"):
        raise CommandError(error["message"], error["hint"], error["code"])
    return answer


async def _response(handle: Handler, line: bytes) -> Mapping[str, Any]:
    try:
        request = json.loads(line)
        if not isinstance(request, dict):
            raise ValueError("no object")
        return await handle(request)
    except CommandError as error:
        return error.as_json()
    except ValueError:  # invalid JSON, or no object
        return CommandError("not a JSON object", "send one a line", "INVALID_ARGUMENT").as_json()


def _socket_path(home: Path) -> tuple[Path, bool]:
    """The path of the socket, and whether its folder is temporary.

    It is temporary where the path of `home` is too long for a socket.
    """
    path = home / _NAME
    if len(os.fsencode(path)) <= _MAX_PATH_BYTES:
        return path, False
    return Path(tempfile.mkdtemp(prefix="treadle-")) / _NAME, True
