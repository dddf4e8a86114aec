"""The control socket by itself, and the file that says where it is."""

import asyncio
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from treadle.mesh.control import ask, serve_control
from treadle.mesh.errors import CommandError
from treadle.mesh.meshfile import MeshFile


async def echo(request: Mapping[str, Any]) -> Mapping[str, Any]:
    if request["do"] == "fail":
        raise CommandError("it failed", "do better", "ABORTED")
    return dict(request)


async def test_requests_and_refusals(tmp_path: Path) -> None:
    async with serve_control(tmp_path, echo) as path:
        assert await ask(str(path), "stop", "features") == {"do": "stop", "service": "features"}
        with pytest.raises(CommandError) as caught:
            await ask(str(path), "fail")
    assert (caught.value.message, caught.value.hint, caught.value.code) == ("it failed", "do better", "ABORTED")


@pytest.mark.parametrize("line", [b"\n", b"nonsense\n", b"[1]\n", b"\xff\n"])
async def test_nonsense_is_refused_and_others_go_on(tmp_path: Path, line: bytes) -> None:
    async with serve_control(tmp_path, echo) as path:
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(line)
        assert json.loads(await reader.readline())["error"]["code"] == "INVALID_ARGUMENT"
        writer.close()
        assert (await ask(str(path), "x"))["do"] == "x"


async def test_nobody_there(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match="no supervisor answers") as caught:
        await ask(str(tmp_path / "mesh.sock"), "status")
    assert "treadle up" in caught.value.hint


def make_file(pid: int) -> MeshFile:
    return MeshFile(pid, "/tmp/s", {"gateway": "127.0.0.1:1"}, "127.0.0.1:2", {}, {}, {"gateway": 5})


def test_mesh_file_is_written_and_found(tmp_path: Path) -> None:
    assert MeshFile.read(tmp_path) is None
    made = make_file(os.getpid())
    made.write(tmp_path)
    assert MeshFile.read(tmp_path) == made
    assert [path.name for path in tmp_path.iterdir()] == ["mesh.json"]
    MeshFile.remove(tmp_path)
    assert MeshFile.read(tmp_path) is None


def test_a_file_left_by_a_dead_supervisor_counts_for_nothing(tmp_path: Path) -> None:
    pid = os.spawnlp(os.P_NOWAIT, "true", "true")
    os.waitpid(pid, 0)
    make_file(pid).write(tmp_path)
    assert MeshFile.read(tmp_path) is None


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"nonsense": 1}'])
def test_a_broken_file_counts_for_nothing(tmp_path: Path, text: str) -> None:
    (tmp_path / "mesh.json").write_text(text)
    assert MeshFile.read(tmp_path) is None
