"""What a manifest must fulfil before a version is made of it.

Plain objects: `codec` makes them from the contract. Shapes include the row axis, as in the signature.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from treadle.core.model_ref import ModelRef
from treadle.plugins.tensor_spec import TensorSpec, fits, validate_specs
from treadle.registry.checks import Problems

_LONGEST_PATH = 512
_LONGEST_PART_BYTES = 255  # as most file systems have it


@dataclass(frozen=True, slots=True)
class Sample:
    """The type and shape (rows first) of a sample column; never its values."""

    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class File:
    """One file of a version: where it lies in the version's folder, and which artifact it is."""

    path: str
    sha256: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Compiled:
    """The faster form of a model that is kept with it."""

    backend: str
    folder: str
    relative_tolerance: float
    absolute_tolerance: float


@dataclass(frozen=True, slots=True)
class Manifest:
    """What the registry looks at. `body` is the whole manifest, serialized."""

    backend: str
    body: bytes
    feature_service: str = ""
    description: str = ""
    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()
    sample_inputs: tuple[Sample, ...] = ()
    sample_outputs: tuple[Sample, ...] = ()
    files: tuple[File, ...] = ()
    parent: ModelRef | None = None
    compiled: Compiled | None = None


def check(manifest: Manifest) -> None:
    """InvalidInput with everything that is wrong, whatever the state of the registry."""
    problems = Problems("the manifest cannot be registered")
    problems.name("manifest.backend", manifest.backend)
    problems.text("manifest.feature_service", manifest.feature_service, 256)
    problems.text("manifest.description", manifest.description)
    _check_tensors(problems, "manifest.signature.inputs", manifest.inputs)
    _check_tensors(problems, "manifest.signature.outputs", manifest.outputs)
    _check_samples(problems, manifest)
    _check_files(problems, manifest.files)
    if manifest.compiled is not None:
        _check_compiled(problems, manifest.compiled, manifest.files)
    if manifest.parent is not None:
        check_ref(problems, "manifest.lineage.parent", manifest.parent)
    problems.raise_if_any()


def check_ref(problems: Problems, field: str, ref: ModelRef) -> None:
    """A reference that could name a registered version."""
    problems.name(f"{field}.model", ref.model)
    if ref.version < 1:
        problems.add(f"{field}.version", "must be 1 or more")


def _check_tensors(problems: Problems, field: str, tensors: Sequence[TensorSpec]) -> None:
    if not tensors:
        problems.add(field, "must not be empty")
    for i, tensor in enumerate(tensors):
        problems.text(f"{field}[{i}].name", tensor.name, 256)
    for fault in validate_specs(field, tensors):
        problems.add(fault.field, fault.description)


def _check_samples(problems: Problems, manifest: Manifest) -> None:
    inputs, outputs = manifest.sample_inputs, manifest.sample_outputs
    if inputs:
        given = {sample.name for sample in inputs}
        for tensor in manifest.inputs:
            if tensor.name not in given:
                problems.add("manifest.sample_inputs", f"lacks a column for input {tensor.name!r}")
    elif outputs:
        problems.add("manifest.sample_outputs", "need the sample_inputs that they answer")
    _check_fit(problems, "manifest.sample_inputs", inputs, manifest.inputs)
    _check_fit(problems, "manifest.sample_outputs", outputs, manifest.outputs)
    rows = {sample.shape[0] for sample in (*inputs, *outputs)}
    if len(rows) > 1 or 0 in rows:
        problems.add("manifest.sample_inputs", "and sample_outputs must all have the same number of rows, 1 or more")


def _check_fit(problems: Problems, field: str, samples: Sequence[Sample], tensors: Sequence[TensorSpec]) -> None:
    known = {tensor.name: tensor for tensor in tensors}
    for sample in samples:
        where = f"{field}[{sample.name}]"
        tensor = known.get(sample.name)
        if tensor is None:
            problems.add(where, "is not in the signature")
        elif sample.dtype != tensor.dtype:
            problems.add(where, f"is {sample.dtype}, the signature says {tensor.dtype or 'nothing'}")
        elif not fits(tensor.shape[1:], sample.shape[1:]):
            problems.add(where, f"has rows of shape {list(sample.shape[1:])}, wanted {list(tensor.shape[1:])}")


def _check_files(problems: Problems, files: Sequence[File]) -> None:
    paths = {file.path for file in files}
    problems.once("manifest.files", (f"the path {file.path!r}" for file in files))
    for i, file in enumerate(files):
        where = f"manifest.files[{i}]"
        wrong = wrong_path(file.path)
        if wrong:
            problems.add(f"{where}.path", wrong)
        elif any(str(parent) in paths for parent in PurePosixPath(file.path).parents):
            problems.add(f"{where}.path", "lies below another file")
        problems.digest(f"{where}.sha256", file.sha256)
        if file.size_bytes < 0:
            problems.add(f"{where}.size_bytes", "must not be negative")


def _check_compiled(problems: Problems, compiled: Compiled, files: Sequence[File]) -> None:
    problems.name("manifest.compiled.backend", compiled.backend)
    wrong = wrong_path(compiled.folder)
    if wrong:
        problems.add("manifest.compiled.folder", wrong)
    elif not any(file.path.startswith(f"{compiled.folder}/") for file in files):
        problems.add("manifest.compiled.folder", "holds none of the manifest's files")
    for name in ("relative_tolerance", "absolute_tolerance"):
        if not 0 <= getattr(compiled, name) < math.inf:  # so written because NaN is neither
            problems.add(f"manifest.compiled.{name}", "must be 0 or more, and finite")


def wrong_path(path: str) -> str:
    """Why a loader could not safely write this path below a folder of its own; "" if it can."""
    if not 0 < len(path) <= _LONGEST_PATH:
        return f"must have 1 to {_LONGEST_PATH} characters"
    if not path.isprintable() or "\\" in path or ":" in path:
        return "must hold printable characters, without backslash and colon"
    parts = path.split("/")
    if any(part in {"", ".", ".."} for part in parts):
        return 'must be relative, with forward slashes, without "." and ".."'
    if any(len(part.encode()) > _LONGEST_PART_BYTES for part in parts):
        return f"must have no part of more than {_LONGEST_PART_BYTES} bytes"
    return ""
