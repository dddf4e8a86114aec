"""Downloads return the uploaded bytes; a failed upload leaves no file."""

import asyncio
import fcntl
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from treadle.core.errors import DataLoss, InvalidInput, NotFound, StorageFull
from treadle.registry.artifacts import CHUNK_BYTES, ArtifactStore
from treadle.registry.service import RegistrySettings
from treadle.v1 import registry_pb2 as pb

if TYPE_CHECKING:
    from tests.registry.conftest import Open, Registry

TRICKS = [
    "",
    "../../../../etc/passwd",
    "..",
    "ab/../../" + "c" * 55,
    "A" * 64,
    "a" * 63,
    "a" * 65,
    "a" * 63 + "\n",
    "a" * 64 + "\n",
    "/" + "a" * 63,
    "\0" * 64,
    "é" * 64,
]


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _stored(home: Path, sha256: str) -> Path:
    return home / "artifacts/sha256" / sha256[:2] / sha256[2:]


def _everything(home: Path) -> list[Path]:
    return _files(home / "artifacts")


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


@pytest.mark.parametrize("size", [0, 1, CHUNK_BYTES, 3 * CHUNK_BYTES + 1])
async def test_a_download_returns_the_uploaded_bytes(registry: "Registry", size: int) -> None:
    data = os.urandom(size)
    answer = await registry.upload(data)
    assert (answer.sha256, answer.size_bytes, answer.existed) == (_digest(data), size, False)
    assert await registry.download(answer.sha256) == data
    assert (await registry.upload(data)).existed
    assert _everything(registry.home) == [_stored(registry.home, answer.sha256)]


@pytest.mark.parametrize(
    ("sha256", "size"), [("0" * 64, 5), ("", 4), ("", 6)], ids=["wrong digest", "too many bytes", "too few bytes"]
)
async def test_an_upload_with_a_wrong_digest_or_size_is_data_loss(registry: "Registry", sha256: str, size: int) -> None:
    with pytest.raises(DataLoss):
        await registry.upload(b"hello", sha256=sha256, size=size)
    assert _everything(registry.home) == []


async def test_a_wrong_size_is_data_loss_even_when_the_artifact_is_stored(registry: "Registry") -> None:
    await registry.upload(b"hello")
    with pytest.raises(DataLoss):
        await registry.upload(b"hello", size=4)


@pytest.mark.parametrize("trick", TRICKS)
async def test_only_a_digest_names_an_artifact(registry: "Registry", trick: str) -> None:
    header = pb.UploadArtifactRequest.Header(sha256=trick, size_bytes=1)
    with pytest.raises(InvalidInput):
        await registry.rpc.UploadArtifact(
            iter([pb.UploadArtifactRequest(header=header), pb.UploadArtifactRequest(chunk=b"x")])
        )
    with pytest.raises(InvalidInput):
        await registry.download(trick)
    assert _everything(registry.home) == []


HEADER = pb.UploadArtifactRequest(header=pb.UploadArtifactRequest.Header(sha256=_digest(b"xy"), size_bytes=2))


@pytest.mark.parametrize(
    "parts",
    [
        [],
        [pb.UploadArtifactRequest()],
        [pb.UploadArtifactRequest(chunk=b"xy")],
        [HEADER, pb.UploadArtifactRequest(chunk=b"x"), HEADER],
        [HEADER, pb.UploadArtifactRequest()],
        [pb.UploadArtifactRequest(header=pb.UploadArtifactRequest.Header(sha256=_digest(b"xy"), size_bytes=-1))],
    ],
    ids=["nothing", "empty part", "no header", "two headers", "empty part later", "negative size"],
)
async def test_parts_out_of_order_are_refused(registry: "Registry", parts: list[pb.UploadArtifactRequest]) -> None:
    with pytest.raises(InvalidInput):
        await registry.rpc.UploadArtifact(iter(parts))
    assert _everything(registry.home) == []


async def test_an_unknown_artifact_is_not_found(registry: "Registry") -> None:
    with pytest.raises(NotFound):
        await registry.download("a" * 64)


@pytest.mark.parametrize("harm", ["flip", "cut", "grow"])
async def test_a_corrupt_artifact_is_never_served_and_can_be_replaced(registry: "Registry", harm: str) -> None:
    data = os.urandom(2 * CHUNK_BYTES + 7)
    sha256 = (await registry.upload(data)).sha256
    path = _stored(registry.home, sha256)
    harmed = {"flip": bytes([data[0] ^ 1]) + data[1:], "cut": data[:-1], "grow": data + b"x"}[harm]
    path.write_bytes(harmed)
    received = bytearray()
    with pytest.raises(DataLoss, match="upload it again"):
        async for part in registry.rpc.DownloadArtifact(pb.DownloadArtifactRequest(sha256=sha256)):
            received += part.chunk
    assert len(received) < len(harmed)
    assert not (await registry.upload(data)).existed
    assert await registry.download(sha256) == data


async def test_larger_than_the_limit_is_refused_before_a_byte_is_written(open_registry: "Open", tmp_path: Path) -> None:
    async with open_registry(tmp_path, RegistrySettings(artifact_limit_mib=1)) as registry:
        await registry.upload(bytes(1 << 20))
        with pytest.raises(StorageFull, match="takes up to"):
            await registry.upload(bytes((1 << 20) + 1))
        assert len(_everything(registry.home)) == 1


async def test_reserved_disk_space_is_not_used(open_registry: "Open", tmp_path: Path) -> None:
    async with open_registry(tmp_path, RegistrySettings(disk_reserve_mib=1 << 40)) as registry:
        with pytest.raises(StorageFull, match="room for 0"):
            await registry.upload(b"hello")
        assert _everything(registry.home) == []


async def test_concurrent_uploads_of_the_same_bytes_agree(registry: "Registry") -> None:
    data = os.urandom(CHUNK_BYTES)
    await asyncio.gather(*(registry.upload(data) for _ in range(8)))
    assert _everything(registry.home) == [_stored(registry.home, _digest(data))]
    assert await registry.download(_digest(data)) == data


async def test_a_cancelled_upload_leaves_no_file(tmp_path: Path) -> None:
    artifacts = ArtifactStore(tmp_path, limit_bytes=1 << 20)
    begun = asyncio.Event()

    async def chunks() -> AsyncIterator[bytes]:
        yield b"hel"
        begun.set()
        await asyncio.Event().wait()

    upload = asyncio.create_task(artifacts.upload(_digest(b"hello"), 5, chunks()))
    await begun.wait()
    upload.cancel()
    with pytest.raises(asyncio.CancelledError):
        await upload
    await artifacts.close()
    assert _files(tmp_path) == []


_UPLOAD_FOR_EVER = """
import asyncio, sys
from pathlib import Path
from treadle.registry.artifacts import ArtifactStore

async def chunks():
    yield b"hel"
    print("begun", flush=True)
    await asyncio.Event().wait()

async def main(folder):
    await ArtifactStore(Path(folder), limit_bytes=5).upload("a" * 64, 5, chunks())

asyncio.run(main(sys.argv[1]))
"""


def test_an_upload_in_progress_is_kept_until_its_process_is_killed(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _UPLOAD_FOR_EVER, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as uploading:
        assert uploading.stdout is not None
        assert uploading.stdout.readline() == "begun\n"
        ArtifactStore(tmp_path, limit_bytes=5)
        assert len(_files(tmp_path)) == 1
        uploading.kill()
    ArtifactStore(tmp_path, limit_bytes=5)
    assert _files(tmp_path) == []


async def test_a_start_deletes_abandoned_uploads_but_not_those_in_progress(tmp_path: Path) -> None:
    incoming = tmp_path / "incoming"
    incoming.mkdir()
    (incoming / "dead").write_bytes(b"half")
    with (incoming / "alive").open("wb") as alive:
        fcntl.flock(alive, fcntl.LOCK_EX)
        await ArtifactStore(tmp_path, limit_bytes=1).close()
        assert [path.name for path in incoming.iterdir()] == ["alive"]


_UPLOAD = """
import asyncio, hashlib, json, resource, sys
from pathlib import Path
from treadle.registry.artifacts import ArtifactStore
from treadle.core.errors import StorageFull

async def main(folder, size, largest_file):
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(largest_file), int(largest_file)))
    artifacts = ArtifactStore(Path(folder), limit_bytes=1 << 40)
    async def upload(data, stated):
        async def chunks():
            for start in range(0, len(data), 65536):
                yield data[start:start + 65536]
        try:
            await artifacts.upload(hashlib.sha256(data).hexdigest(), stated, chunks())
        except StorageFull as error:
            return error.message
        return "kept"
    print(json.dumps([await upload(bytes(int(size)), int(size)), await upload(b"small", 5)]))
    await artifacts.close()

asyncio.run(main(*sys.argv[1:]))
"""


def _upload_elsewhere(folder: Path, size: int, largest_file: int) -> tuple[str, str]:
    """What became of an upload of `size` bytes, and of a small one after it, where no file may grow larger."""
    command = [sys.executable, "-c", _UPLOAD, str(folder), str(size), str(largest_file)]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    large, small = json.loads(ran.stdout)
    return large, small


def test_a_disk_that_fills_up_during_an_upload_leaves_no_file(tmp_path: Path) -> None:
    large, small = _upload_elsewhere(tmp_path, 1 << 20, largest_file=300_000)
    assert "no space left" in large
    assert small == "kept"
    assert _files(tmp_path) == [tmp_path / "sha256" / _digest(b"small")[:2] / _digest(b"small")[2:]]


@pytest.mark.privileged
async def test_a_full_disk_leaves_no_file(tiny_disk: Path) -> None:
    artifacts = ArtifactStore(tiny_disk, limit_bytes=1 << 40)
    with pytest.raises(StorageFull, match="room for"):
        await artifacts.upload("a" * 64, 2 << 20, _no_chunks())

    async def chunks() -> AsyncIterator[bytes]:
        yield bytes(400_000)
        (tiny_disk / "others").write_bytes(bytes(400_000))  # while the upload is under way
        yield bytes(400_000)

    with pytest.raises(StorageFull, match="no space left"):
        await artifacts.upload("a" * 64, 800_000, chunks())
    await artifacts.close()
    assert _files(tiny_disk) == [tiny_disk / "others"]


async def _no_chunks() -> AsyncIterator[bytes]:
    nothing: list[bytes] = []
    for chunk in nothing:
        yield chunk
