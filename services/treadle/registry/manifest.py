"""Validation of manifests before a model version is registered.

`codec` decodes these plain objects from messages. Shapes include the row axis, as in the signature.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from treadle.core.model_ref import ModelRef
from treadle.plugins.tensor_spec import TensorSpec, fits, validate_specs
from treadle.registry.checks import ViolationCollector

_MAX_PATH_CHARACTERS = 512
_MAX_PATH_PART_BYTES = 255  # the limit of most file systems


@dataclass(frozen=True, slots=True)
class SampleColumn:
    """Type and shape (rows first) of a sample column, without its values."""

    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ManifestFile:
    """One file of a version: its path in the version's folder, and the SHA-256 of its artifact."""

    path: str
    sha256: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class CompiledSpec:
    """The compiled form that is stored with a model."""

    backend: str
    folder: str
    relative_tolerance: float
    absolute_tolerance: float


@dataclass(frozen=True, slots=True)
class Manifest:
    """The fields of a manifest that the registry validates. `body` is the complete serialized `treadle.v1.Manifest`."""

    backend: str
    body: bytes
    feature_service: str = ""
    description: str = ""
    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()
    sample_inputs: tuple[SampleColumn, ...] = ()
    sample_outputs: tuple[SampleColumn, ...] = ()
    files: tuple[ManifestFile, ...] = ()
    parent: ModelRef | None = None
    compiled: CompiledSpec | None = None


def check(manifest: Manifest) -> None:
    """Checks that do not depend on stored data. InvalidInput lists all violations."""
    violations = ViolationCollector("the manifest cannot be registered")
    violations.check_name("manifest.backend", manifest.backend)
    violations.check_text("manifest.feature_service", manifest.feature_service, 256)
    violations.check_text("manifest.description", manifest.description)
    _check_tensors(violations, "manifest.signature.inputs", manifest.inputs)
    _check_tensors(violations, "manifest.signature.outputs", manifest.outputs)
    _check_samples(violations, manifest)
    _check_files(violations, manifest.files)
    if manifest.compiled is not None:
        _check_compiled(violations, manifest.compiled, manifest.files)
    if manifest.parent is not None:
        check_ref(violations, "manifest.lineage.parent", manifest.parent)
    violations.raise_if_any()


def check_ref(violations: ViolationCollector, field: str, ref: ModelRef) -> None:
    """Checks the syntax of a model reference."""
    violations.check_name(f"{field}.model", ref.model)
    if ref.version < 1:
        violations.add(f"{field}.version", "must be 1 or more")


def _check_tensors(violations: ViolationCollector, field: str, tensors: Sequence[TensorSpec]) -> None:
    if not tensors:
        violations.add(field, "must not be empty")
    for i, tensor in enumerate(tensors):
        violations.check_text(f"{field}[{i}].name", tensor.name, 256)
    for fault in validate_specs(field, tensors):
        violations.add(fault.field, fault.description)


def _check_samples(violations: ViolationCollector, manifest: Manifest) -> None:
    inputs, outputs = manifest.sample_inputs, manifest.sample_outputs
    if inputs:
        given = {sample.name for sample in inputs}
        for tensor in manifest.inputs:
            if tensor.name not in given:
                violations.add("manifest.sample_inputs", f"lacks a column for input {tensor.name!r}")
    elif outputs:
        violations.add("manifest.sample_outputs", "need the sample_inputs that they answer")
    _check_against_signature(violations, "manifest.sample_inputs", inputs, manifest.inputs)
    _check_against_signature(violations, "manifest.sample_outputs", outputs, manifest.outputs)
    rows = {sample.shape[0] for sample in (*inputs, *outputs)}
    if len(rows) > 1 or 0 in rows:
        violations.add("manifest.sample_inputs", "and sample_outputs must all have the same number of rows, 1 or more")


def _check_against_signature(
    violations: ViolationCollector, field: str, samples: Sequence[SampleColumn], tensors: Sequence[TensorSpec]
) -> None:
    known = {tensor.name: tensor for tensor in tensors}
    for sample in samples:
        where = f"{field}[{sample.name}]"
        tensor = known.get(sample.name)
        if tensor is None:
            violations.add(where, "is not in the signature")
        elif sample.dtype != tensor.dtype:
            violations.add(where, f"is {sample.dtype}, the signature says {tensor.dtype or 'nothing'}")
        elif not fits(tensor.shape[1:], sample.shape[1:]):
            violations.add(where, f"has rows of shape {list(sample.shape[1:])}, wanted {list(tensor.shape[1:])}")


def _check_files(violations: ViolationCollector, files: Sequence[ManifestFile]) -> None:
    paths = {file.path for file in files}
    violations.check_unique("manifest.files", (f"the path {file.path!r}" for file in files))
    for i, file in enumerate(files):
        where = f"manifest.files[{i}]"
        wrong = path_error(file.path)
        if wrong:
            violations.add(f"{where}.path", wrong)
        elif any(str(parent) in paths for parent in PurePosixPath(file.path).parents):
            violations.add(f"{where}.path", "lies below another file")
        violations.check_digest(f"{where}.sha256", file.sha256)
        if file.size_bytes < 0:
            violations.add(f"{where}.size_bytes", "must not be negative")


def _check_compiled(violations: ViolationCollector, compiled: CompiledSpec, files: Sequence[ManifestFile]) -> None:
    violations.check_name("manifest.compiled.backend", compiled.backend)
    wrong = path_error(compiled.folder)
    if wrong:
        violations.add("manifest.compiled.folder", wrong)
    elif not any(file.path.startswith(f"{compiled.folder}/") for file in files):
        violations.add("manifest.compiled.folder", "holds none of the manifest's files")
    for name in ("relative_tolerance", "absolute_tolerance"):
        if not 0 <= getattr(compiled, name) < math.inf:  # False for NaN
            violations.add(f"manifest.compiled.{name}", "must be 0 or more, and finite")


def path_error(path: str) -> str:
    """Why a loader could not safely write this relative path below its folder; "" if it can."""
    if not 0 < len(path) <= _MAX_PATH_CHARACTERS:
        return f"must have 1 to {_MAX_PATH_CHARACTERS} characters"
    if not path.isprintable() or "\\" in path or ":" in path:
        return "must hold printable characters, without backslash and colon"
    parts = path.split("/")
    if any(part in {"", ".", ".."} for part in parts):
        return 'must be relative, with forward slashes, without "." and ".."'
    if any(len(part.encode()) > _MAX_PATH_PART_BYTES for part in parts):
        return f"must have no part of more than {_MAX_PATH_PART_BYTES} bytes"
    return ""
