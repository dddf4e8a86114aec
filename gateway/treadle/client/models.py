"""Models and their versions: push, list, aliases, reports, history."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

from treadle.client.references import VersionReference
from treadle.client.uploads import Progress, UploadProgress, artifact_chunks
from treadle.client.versions import RegistryConnection
from treadle.v1 import evaluation_pb2, registry_pb2

_PAGE_SIZE = 200


class Models(RegistryConnection):
    """The model methods of a client. They return messages of the registry."""

    async def push_model(
        self, name: str, folder: str | Path, *, idempotency_key: str = "", progress: Progress | None = None
    ) -> registry_pb2.ModelVersion:
        """Registers the package that `treadle.plugins.save_model` wrote to `folder` as the next version of `name`.

        Files that the registry has already are not uploaded again. The same folder pushed twice is one version,
        unless each push has an `idempotency_key` of its own. NotFound if the folder holds no package.
        """
        from treadle.plugins.packaging import read_package

        folder = Path(folder)
        manifest = await asyncio.to_thread(read_package, folder)
        await self._upload(folder, manifest, progress)
        request = registry_pb2.CreateModelVersionRequest(
            model=name, manifest=manifest, idempotency_key=idempotency_key or _content_key(name, manifest)
        )
        return await self._registry.CreateModelVersion(request)

    async def models(self) -> list[registry_pb2.Model]:
        """Every model."""
        pages = _pages(self._registry.ListModels, registry_pb2.ListModelsRequest(page_size=_PAGE_SIZE))
        return [model async for page in pages for model in page.models]

    async def get_model(self, name: str) -> registry_pb2.Model:
        """One model with its aliases; NotFound."""
        return await self._registry.GetModel(registry_pb2.GetModelRequest(name=name))

    async def versions(self, model: str) -> list[registry_pb2.ModelVersion]:
        """Every version of a model, newest first; NotFound."""
        request = registry_pb2.ListModelVersionsRequest(model=model, page_size=_PAGE_SIZE)
        return [
            version async for page in _pages(self._registry.ListModelVersions, request) for version in page.versions
        ]

    async def get_version(self, reference: str) -> registry_pb2.ModelVersion:
        """A version by number or alias: "flight-delay/3", "flight-delay@champion"; NotFound."""
        return await self._registry.GetModelVersion(VersionReference.parse(reference).request())

    async def set_alias(self, model: str, alias: str, version: int) -> registry_pb2.Model:
        """Points an alias such as "champion" to a version; version 0 removes it."""
        return await self._registry.SetAlias(registry_pb2.SetAliasRequest(model=model, alias=alias, version=version))

    async def reports(self, reference: str) -> list[evaluation_pb2.EvaluationReport]:
        """The evaluation reports of a version, newest first."""
        request = registry_pb2.ListReportsRequest(ref=await self._resolve(reference), page_size=_PAGE_SIZE)
        pages = _pages(self._registry.ListReports, request)
        return [
            evaluation_pb2.EvaluationReport.FromString(stored.report) async for page in pages for stored in page.reports
        ]

    async def download_artifact(self, sha256: str, path: str | Path) -> int:
        """Writes an artifact to `path`; its size in bytes. Its digest is checked; DataLoss leaves no file."""
        from treadle.core.errors import DataLoss
        from treadle.core.files import replacing

        path, digest, size = Path(path), hashlib.sha256(), 0
        with replacing(path, durable=False) as file:  # chunks are small and the disk is local
            async for message in self._registry.DownloadArtifact(registry_pb2.DownloadArtifactRequest(sha256=sha256)):
                digest.update(message.chunk)
                size += file.write(message.chunk)
            if digest.hexdigest() != sha256:
                raise DataLoss(f"artifact {sha256[:12]}… arrived with another digest; ask again")
        return size

    async def history(self, subject_prefix: str = "", *, limit: int = 50) -> list[registry_pb2.HistoryEvent]:
        """At most `limit` history events, newest first, of subjects that begin with a prefix such as "flight-delay"."""
        found: list[registry_pb2.HistoryEvent] = []
        token = ""
        while len(found) < limit:
            request = registry_pb2.ListHistoryRequest(
                subject_prefix=subject_prefix, page_size=min(_PAGE_SIZE, limit - len(found)), page_token=token
            )
            page = await self._registry.ListHistory(request)
            found.extend(page.events)
            if not (token := page.next_page_token):
                break
        return found

    async def _upload(self, folder: Path, manifest: registry_pb2.Manifest, progress: Progress | None) -> None:
        total, done = sum(file.size_bytes for file in manifest.files), 0
        for file in manifest.files:
            report = _progress_reporter(progress, file.path, done, total)
            await self._registry.UploadArtifact(artifact_chunks(folder / file.path, file, report))
            done += file.size_bytes
            if progress is not None:
                progress(UploadProgress(file.path, done, total))


async def _pages(list_method: Callable[..., Awaitable[Any]], request: Any) -> AsyncIterator[Any]:
    """Every page of a paginated list method of the registry."""
    while True:
        page = await list_method(request)
        yield page
        if not page.next_page_token:
            return
        request.page_token = page.next_page_token


def _progress_reporter(progress: Progress | None, path: str, before: int, total: int) -> Callable[[int], None]:
    """A callback that adds up the bytes sent of one file and reports progress."""
    done = before

    def report(size: int) -> None:
        nonlocal done
        done += size
        if progress is not None:
            progress(UploadProgress(path, done, total))

    return report


def _content_key(name: str, manifest: registry_pb2.Manifest) -> str:
    """A key derived from the content, so that a push repeated after a broken connection makes no second version."""
    return f"{name}:{hashlib.sha256(manifest.SerializeToString(deterministic=True)).hexdigest()}"
