"""Upload messages of a file: a header, then chunks, read in a thread so that the event loop is not blocked."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import BinaryIO, NamedTuple

from treadle.v1 import registry_pb2

CHUNK_BYTES = 1 << 20


class UploadProgress(NamedTuple):
    """Progress of a model push."""

    file: str
    """Path of the file being sent, within the package."""
    bytes_done: int
    """Bytes of all files so far; files that the registry had already count as done."""
    bytes_total: int


Progress = Callable[[UploadProgress], None]


async def artifact_chunks(
    path: Path, file: registry_pb2.ModelFile, sent: Callable[[int], None]
) -> AsyncIterator[registry_pb2.UploadArtifactRequest]:
    """The messages of one upload. `sent` is called with the size of each chunk."""
    header = registry_pb2.UploadArtifactRequest.Header(sha256=file.sha256, size_bytes=file.size_bytes)
    yield registry_pb2.UploadArtifactRequest(header=header)
    opened: BinaryIO = await asyncio.to_thread(path.open, "rb")
    with opened:
        while chunk := await asyncio.to_thread(opened.read, CHUNK_BYTES):
            yield registry_pb2.UploadArtifactRequest(chunk=chunk)
            sent(len(chunk))
