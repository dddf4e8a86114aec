"""Registered model versions as plain objects, decoded from the registry's messages."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from treadle.core.errors import InvalidInput
from treadle.core.model_ref import ModelRef
from treadle.plugins.checked import ManifestSample
from treadle.plugins.compiling.comparing import Tolerance
from treadle.plugins.tensors import Signature
from treadle.v1 import registry_pb2

_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class ModelFile:
    """One file of a model; `path` is relative and stays inside the model's folder."""

    path: str
    sha256: str
    size_bytes: int

    def __post_init__(self) -> None:
        path = PurePosixPath(self.path)
        unsafe = not self.path or path.is_absolute() or ".." in path.parts or "\\" in self.path or "\0" in self.path
        if unsafe or not _DIGEST.fullmatch(self.sha256):
            raise InvalidInput(f"the manifest names the file {self.path[:200]!r} with an unusable path or digest")


@dataclass(frozen=True, slots=True)
class CompiledModel:
    """The compiled form that is stored with a model."""

    backend: str
    folder: str
    """Folder of its files, relative to the model's folder."""
    options: Mapping[str, str]
    tolerance: Tolerance
    """Tolerance within which it reproduced the original's outputs."""


@dataclass(frozen=True, slots=True)
class RegisteredVersion:
    """A registered version: all that is needed to load it."""

    key: ModelRef
    backend: str
    signature: Signature
    options: Mapping[str, str]
    files: tuple[ModelFile, ...]
    sample: ManifestSample = field(default_factory=ManifestSample)
    """Inputs for the warm-up, and the outputs to compare with."""
    compiled: CompiledModel | None = None

    @classmethod
    def from_proto(cls, pb: registry_pb2.ModelVersion) -> "RegisteredVersion":
        """Decodes and validates a version. Raises InvalidInput for an unusable manifest."""
        manifest = pb.manifest
        return cls(
            key=ModelRef.checked(pb.ref.model, pb.ref.version),
            backend=manifest.backend,
            signature=Signature.from_proto(manifest.signature),
            options=dict(manifest.backend_options),
            files=tuple(ModelFile(file.path, file.sha256, file.size_bytes) for file in manifest.files),
            sample=ManifestSample.of(manifest),
            compiled=_decode_compiled(manifest),
        )


def _decode_compiled(manifest: registry_pb2.Manifest) -> CompiledModel | None:
    """The compiled form, or None where only the original exists."""
    pb = manifest.compiled
    if not pb.backend or pb.reason:
        return None
    # ModelFile ensures that paths stay inside the model's folder, and so does a folder that contains one of them.
    if not pb.folder or not any(file.path.startswith(f"{pb.folder}/") for file in manifest.files):
        raise InvalidInput(f"the manifest's compiled form lies in {pb.folder[:200]!r}, where it has no file")
    tolerance = Tolerance(pb.relative_tolerance, pb.absolute_tolerance)
    return CompiledModel(pb.backend, pb.folder, dict(pb.backend_options), tolerance)
