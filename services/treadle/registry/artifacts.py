"""The content-addressed artifact store: each file lies under the SHA-256 of its bytes, `sha256/ab/cdef…`.

An upload is written to `incoming/`, verified, synced, and only then renamed into place, so that a stored file is always
complete. A download is verified while it is read; its last chunk is held back until the digest matches.
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
from treadle.registry.checks import ViolationCollector

T = TypeVar("T")
CHUNK_BYTES = 1 << 20
_IO_THREADS = 4


class ArtifactStore:
    """The artifact folder. Several processes may share it.

    `limit_bytes` is the size limit of an artifact; `reserve_bytes` of the disk stay free for other programs.
    """

    def __init__(self, folder: Path, *, limit_bytes: int, reserve_bytes: int = 0) -> None:
        self._stored = folder / "sha256"
        self._incoming = folder / "incoming"
        self._limit_bytes = limit_bytes
        self._reserve_bytes = reserve_bytes
        self._threads = ThreadPoolExecutor(_IO_THREADS, "registry-files")
        for path in (self._stored, self._incoming):
            path.mkdir(parents=True, exist_ok=True)
        self._remove_abandoned_uploads()

    async def close(self) -> None:
        """Waits for running reads and writes, and ends the threads."""
        await asyncio.to_thread(self._threads.shutdown)

    def _remove_abandoned_uploads(self) -> None:
        """Deletes uploads that a crash interrupted. An upload of a running process is locked, and stays."""
        for path in self._incoming.iterdir():
            try:
                with path.open("rb") as file:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    path.unlink(missing_ok=True)
            except (BlockingIOError, FileNotFoundError):
                continue

    async def upload(self, sha256: str, size_bytes: int, chunks: AsyncIterator[bytes]) -> bool:
        """Stores the bytes; returns True if they were stored already. An error leaves no file behind.

        InvalidInput  an invalid digest, or a negative size
        DataLoss      the bytes do not have the digest or the size
        StorageFull   larger than the limit, or no space left
        """
        violations = ViolationCollector("the artifact cannot be stored")
        violations.check_digest("header.sha256", sha256)
        if size_bytes < 0:
            violations.add("header.size_bytes", "must not be negative")
        violations.raise_if_any()
        if await self._run(self._has_intact, sha256, size_bytes):
            return True
        await self._run(self._check_space, size_bytes)
        part = _PartialUpload(self._incoming / uuid.uuid4().hex)
        try:
            await self._run(part.open)
            async for chunk in chunks:
                if part.size + len(chunk) > size_bytes:
                    raise DataLoss(f"the upload has more bytes than the {size_bytes} that its header states")
                await self._run(part.write, chunk)
            await self._run(part.keep, self._path(sha256), sha256, size_bytes)
        finally:
            # Shielded, so that a cancelled call does not leave its file behind.
            await asyncio.shield(self._run(part.discard))
        return False

    async def download(self, sha256: str) -> AsyncIterator[bytes]:
        """The bytes, in chunks. NotFound if absent; DataLoss, before the last chunk, if the stored file is corrupt."""
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
        """The size of each artifact in bytes; None for absent artifacts."""
        return await self._run(lambda: {digest: self._size(digest) for digest in digests})

    async def _run(self, work: Callable[..., T], *arguments: Any) -> T:
        with map_disk_full("the registry has no space left for artifacts: make room on its disk"):
            return await asyncio.get_running_loop().run_in_executor(self._threads, work, *arguments)

    def _path(self, sha256: str) -> Path:
        return self._stored / sha256[:2] / sha256[2:]

    def _open(self, sha256: str) -> IO[bytes]:
        violations = ViolationCollector("no such artifact can exist")
        violations.check_digest("sha256", sha256)
        violations.raise_if_any()
        try:
            return self._path(sha256).open("rb")
        except FileNotFoundError:
            raise NotFound(f"artifact {sha256} is not stored here") from None

    def _size(self, sha256: str) -> int | None:
        try:
            return self._path(sha256).stat().st_size
        except FileNotFoundError:
            return None

    def _has_intact(self, sha256: str, size_bytes: int) -> bool:
        """Whether the artifact is stored intact (a corrupt file is replaced). DataLoss if the stated size is wrong."""
        found = self._size(sha256)
        if found is None:
            return False
        with self._path(sha256).open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != sha256:
                return False
        if found != size_bytes:
            raise DataLoss(f"the bytes of {sha256} are {found}, the header states {size_bytes}")
        return True

    def _check_space(self, size_bytes: int) -> None:
        if size_bytes > self._limit_bytes:
            raise StorageFull(f"the artifact has {size_bytes} bytes, this registry takes up to {self._limit_bytes}")
        free = shutil.disk_usage(self._incoming).free - self._reserve_bytes
        if size_bytes > free:
            raise StorageFull(
                f"the artifact has {size_bytes} bytes, the registry has room for {max(free, 0)}: make room on its disk"
            )


class _PartialUpload:
    """An upload in progress: a locked file in `incoming`, and the running digest of its bytes.

    Its methods run in threads. The lock is needed because a cancelled call may discard it during a write.
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
                file = self._path.open("xb", buffering=0)  # unbuffered: close() cannot fail on a full disk
                fcntl.flock(file, fcntl.LOCK_EX)  # tells other processes that the upload is in progress
                if os.fstat(file.fileno()).st_nlink:
                    self._file = file
                else:  # another process deleted the file at its start, before it was locked
                    file.close()

    def write(self, chunk: bytes) -> None:
        with self._lock:
            if self._file is not None:
                view = memoryview(chunk)
                while view:  # a raw file may write only a part of the buffer
                    view = view[self._file.write(view) :]
                self._digest.update(chunk)
                self.size += len(chunk)

    def keep(self, path: Path, sha256: str, size_bytes: int) -> None:
        """Verifies the file and moves it durably into place. DataLoss if size or digest differ."""
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
        """Closes the file, and deletes it unless `keep` has moved it."""
        with self._lock:
            self._discarded = True
            file, self._file = self._file, None
            if file is None:
                return
            self._path.unlink(missing_ok=True)
            file.close()
