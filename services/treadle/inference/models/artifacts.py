"""A content-addressed cache of model files on disk, and the folders that models are loaded from.

Every file is verified at every load. A file without its digest is downloaded again, once, and never given to a backend.
"""

import asyncio
import hashlib
import os
import shutil
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from treadle.core.errors import DataLoss
from treadle.core.files import map_disk_full, replacing
from treadle.inference.models.models import ModelFile, RegisteredVersion

Fetch = Callable[[str], AsyncIterator[bytes]]
"""Yields the bytes of the artifact with a SHA-256, in chunks."""


class ArtifactCache:
    """Caches files by digest below `home/artifacts`; each loaded version has a folder below `home/models`."""

    def __init__(self, home: Path, fetch: Fetch) -> None:
        self._cache = home / "artifacts"
        self._models = home / "models"
        self._fetch = fetch

    async def prepare(self, registered: RegisteredVersion) -> Path:
        """Creates the folder of the version with its files, each verified; returns its path.

        DataLoss: a downloaded file does not have its size and digest. StorageFull: the disk is full.
        """
        with map_disk_full(f"no room on disk for the files of model {registered.key}"):
            for file in registered.files:
                if not await asyncio.to_thread(_has_digest, self._path(file), file):
                    await self._download(file)
            return await asyncio.to_thread(self._link_files, registered)

    async def discard(self, registered: RegisteredVersion) -> None:
        """Deletes the version's folder. Cached files stay, so that loading it again is quick."""
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

    def _link_files(self, registered: RegisteredVersion) -> Path:
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

    def _folder(self, registered: RegisteredVersion) -> Path:
        return self._models / registered.key.model / str(registered.key.version)


def _append(write: Callable[[bytes], object], update: Callable[[bytes], None], chunk: bytes) -> None:
    write(chunk)
    update(chunk)


def _has_digest(path: Path, file: ModelFile) -> bool:
    """Whether the cached file exists and has its digest; a corrupt file is deleted."""
    try:
        with path.open("rb") as stored:
            if hashlib.file_digest(stored, "sha256").hexdigest() == file.sha256:
                return True
    except FileNotFoundError:
        return False
    path.unlink()
    return False
