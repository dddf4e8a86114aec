"""Files under the SHA-256 of their bytes: `sha256/ab/cdef…`.

An upload is written to `incoming/`, synced, checked, and only then renamed into place: what lies under a digest
is whole. A download is checked while it is read, and its last chunk is held back until the digest holds.
"""

import asyncio
import fcntl
import hashlib
import io
import os
import shutil
import threading
import uuid
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any, TypeVar

from treadle.core.errors import DataLoss, NotFound, StorageFull
from treadle.core.files import map_disk_full, sync_folder
from treadle.registry.checks import Problems

T = TypeVar("T")
CHUNK_BYTES = 1 << 20
_THREADS = 4


class Artifacts:
    """The folder of artifacts. Several processes may share it.

    `limit_bytes` is the largest artifact; `reserve_bytes` of the disk are left free for everybody else.
    """

    def __init__(self, folder: Path, *, limit_bytes: int, reserve_bytes: int = 0) -> None:
        self._kept = folder / "sha256"
        self._incoming = folder / "incoming"
        self._limit_bytes = limit_bytes
        self._reserve_bytes = reserve_bytes
        self._threads = ThreadPoolExecutor(_THREADS, "registry-files")
        for path in (self._kept, self._incoming):
            path.mkdir(parents=True, exist_ok=True)
        self._remove_leftovers()

    async def close(self) -> None:
        """Waits for the reads and writes that run."""
        await asyncio.to_thread(self._threads.shutdown)

    def _remove_leftovers(self) -> None:
        """Uploads that a crash cut off. One that another process is writing is locked, and stays."""
        for path in self._incoming.iterdir():
            try:
                with path.open("rb") as file:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    path.unlink(missing_ok=True)
            except (BlockingIOError, FileNotFoundError):
                continue

    async def upload(self, sha256: str, size_bytes: int, chunks: AsyncIterator[bytes]) -> bool:
        """Keeps the bytes; returns True if they were here already. Nothing is left behind by an error.

        InvalidInput  no digest, or a negative size
        DataLoss      the bytes do not have the digest or the size
        StorageFull   larger than the limit, or no space left
        """
        problems = Problems("the artifact cannot be stored")
        problems.digest("header.sha256", sha256)
        if size_bytes < 0:
            problems.add("header.size_bytes", "must not be negative")
        problems.raise_if_any()
        if await self._run(self._holds, sha256, size_bytes):
            return True
        await self._run(self._make_room, size_bytes)
        part = _Part(self._incoming / uuid.uuid4().hex)
        try:
            await self._run(part.open)
            async for chunk in chunks:
                if part.size + len(chunk) > size_bytes:
                    raise DataLoss(f"the upload has more bytes than the {size_bytes} that its header states")
                await self._run(part.write, chunk)
            await self._run(part.keep, self._path(sha256), sha256, size_bytes)
        finally:
            # Shielded: a cancelled call must not leave its file either.
            await asyncio.shield(self._run(part.discard))
        return False

    async def download(self, sha256: str) -> AsyncIterator[bytes]:
        """The bytes, in chunks. NotFound if absent; DataLoss, before the last chunk, if they lost their digest."""
        file = await self._run(self._open, sha256)
        try:
            digest = hashlib.sha256()
            ready = b""
            while chunk := await self._run(file.read, CHUNK_BYTES):
                await self._run(digest.update, chunk)
                if ready:
                    yield ready
                ready = chunk
            if digest.hexdigest() != sha256:
                raise DataLoss(f"artifact {sha256} no longer has its digest: upload it again")
            if ready:
                yield ready
        finally:
            file.close()

    async def sizes(self, digests: list[str]) -> dict[str, int | None]:
        """The size of each artifact in bytes; None for those that are not here."""
        return await self._run(lambda: {digest: self._size(digest) for digest in digests})

    async def _run(self, work: Callable[..., T], *arguments: Any) -> T:
        with map_disk_full("the registry has no space left for artifacts: make room on its disk"):
            return await asyncio.get_running_loop().run_in_executor(self._threads, work, *arguments)

    def _path(self, sha256: str) -> Path:
        return self._kept / sha256[:2] / sha256[2:]

    def _open(self, sha256: str) -> IO[bytes]:
        problems = Problems("no such artifact can exist")
        problems.digest("sha256", sha256)
        problems.raise_if_any()
        try:
            return self._path(sha256).open("rb")
        except FileNotFoundError:
            raise NotFound(f"artifact {sha256} is not stored here") from None

    def _size(self, sha256: str) -> int | None:
        try:
            return self._path(sha256).stat().st_size
        except FileNotFoundError:
            return None

    def _holds(self, sha256: str, size_bytes: int) -> bool:
        """Whether these bytes are here, unharmed. A harmed artifact is mended by uploading it again."""
        found = self._size(sha256)
        if found is None:
            return False
        with self._path(sha256).open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != sha256:
                return False
        if found != size_bytes:
            raise DataLoss(f"the bytes of {sha256} are {found}, the header states {size_bytes}")
        return True

    def _make_room(self, size_bytes: int) -> None:
        if size_bytes > self._limit_bytes:
            raise StorageFull(f"the artifact has {size_bytes} bytes, this registry takes up to {self._limit_bytes}")
        free = shutil.disk_usage(self._incoming).free - self._reserve_bytes
        if size_bytes > free:
            raise StorageFull(
                f"the artifact has {size_bytes} bytes, the registry has room for {max(free, 0)}: make room on its disk"
            )


class _Part:
    """An upload on its way in: a locked file in `incoming`, and the digest of what it holds.

    Its methods run in threads. A cancelled call may discard it while a write is still running: hence the lock.
    """

    def __init__(self, path: Path) -> None:
        self.size = 0
        self._path = path
        self._digest = hashlib.sha256()
        self._file: io.FileIO | None = None
        self._discarded = False
        self._lock = threading.Lock()

    def open(self) -> None:
        with self._lock:
            while not self._discarded and self._file is None:
                file = self._path.open("xb", buffering=0)  # closing has nothing left to write to a full disk
                fcntl.flock(file, fcntl.LOCK_EX)  # says to other processes: this is no leftover
                if os.fstat(file.fileno()).st_nlink:
                    self._file = file
                else:  # another process, at its start, was faster than the lock
                    file.close()

    def write(self, chunk: bytes) -> None:
        with self._lock:
            if self._file is not None:
                view = memoryview(chunk)
                while view:  # a raw file may take only a part
                    view = view[self._file.write(view) :]
                self._digest.update(chunk)
                self.size += len(chunk)

    def keep(self, path: Path, sha256: str, size_bytes: int) -> None:
        """Moves the bytes into place, if they are what they should be, so that they outlive a power cut."""
        with self._lock:
            if self._file is None:
                return
            if self.size != size_bytes:
                raise DataLoss(f"the upload has {self.size} bytes, its header states {size_bytes}")
            if self._digest.hexdigest() != sha256:
                raise DataLoss("the upload's bytes do not have the digest that its header states")
            os.fsync(self._file.fileno())
            path.parent.mkdir(exist_ok=True)
            self._path.replace(path)
            for folder in (path.parent, path.parent.parent):
                sync_folder(folder)

    def discard(self) -> None:
        """Closes the file, and removes what was not kept."""
        with self._lock:
            self._discarded = True
            file, self._file = self._file, None
            if file is None:
                return
            self._path.unlink(missing_ok=True)
            file.close()
