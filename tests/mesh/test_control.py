"""The control socket, and the file of the running mesh."""

import asyncio
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from treadle.mesh.control import send_command, serve_control
from treadle.mesh.errors import CommandError
from treadle.mesh.meshfile import MeshFile


async def echo(request: Mapping[str, Any]) -> Mapping[str, Any]:
    if request["do"] == "fail":
        raise CommandError("it failed", "do better", "ABORTED")
    return dict(request)


async def test_requests_are_answered_or_refused(tmp_path: Path) -> None:
    async with serve_control(tmp_path, echo) as path:
        assert await send_command(str(path), "stop", "features") == {"do": "stop", "service": "features"}
        with pytest.raises(CommandError) as caught:
            await send_command(str(path), "fail")
    assert (caught.value.message, caught.value.hint, caught.value.code) == ("it failed", "do better", "ABORTED")


@pytest.mark.parametrize("line", [b"\n", b"nonsense\n", b"[1]\n", b"\xff\n"])
async def test_a_malformed_request_is_refused_and_later_ones_are_answered(tmp_path: Path, line: bytes) -> None:
    async with serve_control(tmp_path, echo) as path:
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(line)
        assert json.loads(await reader.readline())["error"]["code"] == "INVALID_ARGUMENT"
        writer.close()
        assert (await send_command(str(path), "x"))["do"] == "x"


async def test_without_a_supervisor_the_error_says_how_to_start_one(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match="no supervisor answers") as caught:
        await send_command(str(tmp_path / "mesh.sock"), "status")
    assert "treadle up" in caught.value.hint


def make_file(pid: int) -> MeshFile:
    return MeshFile(pid, "/tmp/s", {"gateway": "127.0.0.1:1"}, "127.0.0.1:2", {}, {}, {"gateway": 5})


def test_the_mesh_file_is_written_and_read(tmp_path: Path) -> None:
    assert MeshFile.read(tmp_path) is None
    made = make_file(os.getpid())
    made.write(tmp_path)
    assert MeshFile.read(tmp_path) == made
    assert [path.name for path in tmp_path.iterdir()] == ["mesh.json"]
    MeshFile.remove(tmp_path)
    assert MeshFile.read(tmp_path) is None


def test_the_file_of_a_dead_supervisor_is_ignored(tmp_path: Path) -> None:
    pid = os.spawnlp(os.P_NOWAIT, "true", "true")
    os.waitpid(pid, 0)
    make_file(pid).write(tmp_path)
    assert MeshFile.read(tmp_path) is None


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"nonsense": 1}'])
def test_a_malformed_file_is_ignored(tmp_path: Path, text: str) -> None:
    (tmp_path / "mesh.json").write_text(text)
    assert MeshFile.read(tmp_path) is None
