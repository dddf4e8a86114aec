"""A content-addressed cache of model files on disk, and the folders that models are loaded from.

Every file is hashed at every load: what does not have its digest is fetched again, once, and never given to a backend.
"""

import asyncio
import hashlib
import os
import shutil
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from treadle.core.errors import DataLoss
from treadle.core.files import map_disk_full, replacing
from treadle.inference.models.models import ModelFile, Registered

Fetch = Callable[[str], AsyncIterator[bytes]]
"""The bytes of the artifact with this SHA-256, in chunks."""


class Artifacts:
    """Files by digest below `home/artifacts`; one folder for each loaded version below `home/models`."""

    def __init__(self, home: Path, fetch: Fetch) -> None:
        self._cache = home / "artifacts"
        self._models = home / "models"
        self._fetch = fetch

    async def prepare(self, registered: Registered) -> Path:
        """A folder with the version's files, each checked just now.

        DataLoss: the registry's bytes do not have the digest. StorageFull: no room here.
        """
        with map_disk_full(f"no room on disk for the files of model {registered.key}"):
            for file in registered.files:
                if not await asyncio.to_thread(_intact, self._path(file), file):
                    await self._download(file)
            return await asyncio.to_thread(self._lay_out, registered)

    async def discard(self, registered: Registered) -> None:
        """Removes the version's folder. What is cached stays, for a quick way back."""
        await asyncio.to_thread(shutil.rmtree, self._folder(registered), ignore_errors=True)

    async def _download(self, file: ModelFile) -> None:
        digest, size = hashlib.sha256(), 0
        with replacing(self._path(file), durable=False) as out:
            async for chunk in self._fetch(file.sha256):
                size += len(chunk)
                if size > file.size_bytes:
                    break
                await asyncio.to_thread(_append, out.write, digest.update, chunk)
            if size != file.size_bytes or digest.hexdigest() != file.sha256:
                raise DataLoss(
                    f"file {file.path!r} does not have the size and SHA-256 that its manifest states; push it again"
                )

    def _lay_out(self, registered: Registered) -> Path:
        folder = self._folder(registered)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for file in registered.files:
            target = folder / file.path
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(self._path(file), target)
            except OSError:  # a file system without hard links
                shutil.copyfile(self._path(file), target)
        return folder

    def _path(self, file: ModelFile) -> Path:
        return self._cache / file.sha256[:2] / file.sha256

    def _folder(self, registered: Registered) -> Path:
        return self._models / registered.key.model / str(registered.key.version)


def _append(write: Callable[[bytes], object], update: Callable[[bytes], None], chunk: bytes) -> None:
    write(chunk)
    update(chunk)


def _intact(path: Path, file: ModelFile) -> bool:
    """Whether the cached file still has its digest; it is removed if not."""
    try:
        with path.open("rb") as stored:
            if hashlib.file_digest(stored, "sha256").hexdigest() == file.sha256:
                return True
    except FileNotFoundError:
        return False
    path.unlink()
    return False
