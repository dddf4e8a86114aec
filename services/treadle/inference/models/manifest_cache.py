"""What the registry says, remembered on disk so that a restart does not need it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from treadle.core.errors import DeadlineExceeded, NotFound, Unavailable
from treadle.core.files import read_if_there, write_atomically
from treadle.core.model_ref import ModelRef
from treadle.inference.models.models import RegisteredVersion
from treadle.rpc.client.channel import Channel
from treadle.v1 import registry_pb2
from treadle.v1.registry_pb2_grpc import RegistryServiceStub

ANSWER_SECONDS = 5.0
DOWNLOAD_SECONDS = 600.0


@dataclass(frozen=True, slots=True)
class ManifestCache:
    """Model versions and artifacts of the registry behind `channel`."""

    channel: Channel
    home: Path

    async def describe(self, key: ModelRef) -> RegisteredVersion:
        """The version as the registry has it, or as it had it when it could last be asked: versions never change."""
        path = self.home / "manifests" / key.model / f"{key.version}.binpb"
        request = registry_pb2.GetModelVersionRequest(model=key.model, version=key.version)
        try:
            pb = await RegistryServiceStub(self.channel).GetModelVersion(request, timeout=ANSWER_SECONDS)
        except (Unavailable, DeadlineExceeded) as error:
            remembered = read_if_there(path)
            if remembered is None:
                raise Unavailable(f"the registry cannot be asked about model {key}: {error.message}") from error
            pb = registry_pb2.ModelVersion.FromString(remembered)
        else:
            with suppress(OSError):  # a full disk must not keep a model from serving
                await asyncio.to_thread(_remember, path, pb.SerializeToString(deterministic=True))
        return RegisteredVersion.from_proto(pb)

    async def latest(self, name: str) -> ModelRef:
        """The newest version of a model; NotFound if there is none."""
        request = registry_pb2.GetModelRequest(name=name)
        model = await RegistryServiceStub(self.channel).GetModel(request, timeout=ANSWER_SECONDS)
        if model.latest_version == 0:
            raise NotFound(f"model {name!r} has no versions")
        return ModelRef.checked(name, model.latest_version)

    async def fetch(self, sha256: str) -> AsyncIterator[bytes]:
        """The bytes of an artifact, in chunks."""
        request = registry_pb2.DownloadArtifactRequest(sha256=sha256)
        async for part in RegistryServiceStub(self.channel).DownloadArtifact(request, timeout=DOWNLOAD_SECONDS):
            yield part.chunk


def _remember(path: Path, content: bytes) -> None:
    """Waits for the disk only where this is new."""
    if read_if_there(path) != content:
        write_atomically(path, content)
