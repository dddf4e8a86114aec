"""Model folders: the files of a backend, and their manifest `treadle-model.json`.

save_model(model, folder, {"features": rows})     # chooses the backend, verifies the files
manifest = read_package(folder)                   # with every file's digest, ready to register
load_package(folder).predict({"features": rows})
"""

import hashlib
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from pathlib import Path
from platform import python_version
from typing import Any

import numpy as np
from google.protobuf import json_format

from treadle.core.column import Column
from treadle.core.errors import AlreadyExists, InvalidInput, NotFound, Violation
from treadle.plugins.backend import LoadedModel, ModelBackend, ModelSource
from treadle.plugins.checked import CheckedModel, ManifestSample, load_verified
from treadle.plugins.compiling.compiler import Compiler
from treadle.plugins.errors import BackendFault
from treadle.plugins.manager import Plugins
from treadle.plugins.tensor_spec import TensorSpec
from treadle.plugins.tensors import Array, Signature, Tensors, spec_like
from treadle.rpc.codec.columns import encode_all
from treadle.v1 import registry_pb2

MANIFEST = "treadle-model.json"
SAMPLE_ROWS = 64
"""The maximum number of sample rows that a manifest keeps."""


def save_model(
    model: Any,
    folder: Path,
    sample: Mapping[str, Any],
    *,
    backend: str | None = None,
    columns: Mapping[str, Sequence[str]] | None = None,
    units: Mapping[str, Sequence[str]] | None = None,
    allow_nan: bool = False,
    feature_service: str = "",
    parameters: Mapping[str, Any] | None = None,
    metrics: Mapping[str, float] | None = None,
    lineage: registry_pb2.Lineage | None = None,
    description: str = "",
    options: Mapping[str, str] | None = None,
    compile: bool = True,  # noqa: A002  # the name that users look for
    plugins: Plugins | None = None,
) -> registry_pb2.Manifest:
    """Writes `model` to `folder`, which must be empty or absent, and returns its manifest with the list of files.

    `sample`: real inputs by tensor name, one row or more; they define dtypes and shapes of the signature. `columns` and
    `units`: for an input, the feature of each column and the units. `allow_nan`: whether floating inputs may be NaN.
    The model is loaded back and run on the sample: its outputs become the signature's and the manifest's.
    `compile`: whether to convert the model to ONNX, which is kept beside the model if it is equivalent and faster
    (see `compiling`); the manifest has the result.
    An error leaves no files behind. Raises InvalidInput, NotFound (no such backend), AlreadyExists.
    """
    folder = Path(folder)
    if folder.exists() and any(folder.iterdir()):
        raise AlreadyExists(f"{folder} is not empty; a model is saved into a new folder")
    plugins = plugins or Plugins.load()
    chosen = choose_backend(model, backend, plugins)
    tensors = _sample(sample)
    wanted = {**chosen.inferred_options(model), **(options or {})}
    chosen.check_options(wanted)
    inputs = Signature(_input_specs(tensors, columns or {}, units or {}, allow_nan), ())
    inputs.check_inputs(tensors)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as scratch:
        part = Path(scratch) / "model"
        part.mkdir()
        chosen.save(model, part, tensors)
        outputs = _reload_and_predict(chosen, ModelSource(part, inputs, wanted, threads=1), tensors)
        specs = tuple(spec_like(name, array) for name, array in outputs.items())
        manifest = registry_pb2.Manifest(
            backend=chosen.name,
            signature=replace(inputs, outputs=specs).to_proto(),
            feature_service=feature_service,
            sample_inputs=encode_all(_columns(inputs.inputs, tensors)),
            sample_outputs=encode_all(_columns(specs, outputs)),
            backend_options=wanted,
            parameters={name: str(value) for name, value in (parameters or {}).items()},
            metrics=dict(metrics or {}),
            lineage=_lineage(lineage, chosen),
            description=description,
        )
        if compile:
            compiler, kept = Compiler(plugins), ManifestSample(tensors, outputs)
            manifest.compiled.CopyFrom(compiler.compile(model, chosen, source_of(manifest, part), kept))
        else:
            manifest.compiled.reason = "switched off with compile=False"
        (part / MANIFEST).write_text(json_format.MessageToJson(manifest, indent=2) + "\n")
        part.replace(folder)
    return read_package(folder)


def read_package(folder: Path) -> registry_pb2.Manifest:
    """The manifest of a model folder, with path, digest and size of every file.

    Raises NotFound if there is none, InvalidInput if it is no manifest or the folder holds links.
    """
    folder = Path(folder)
    manifest = _manifest(folder)
    manifest.files.extend(_file_entry(folder, path) for path in _files(folder))
    return manifest


def load_package(folder: Path, *, threads: int = 1, plugins: Plugins | None = None) -> LoadedModel:
    """The model of a folder, ready to predict, and verified on its sample.

    Raises as `read_package`, InvalidInput for its options, BackendFault for a model that fails or has other outputs.
    """
    folder = Path(folder)
    manifest = _manifest(folder)
    _files(folder)  # refuses links: nothing outside of the folder is loaded
    backend = (plugins or Plugins.load()).backend(manifest.backend)
    return load_verified(backend, source_of(manifest, folder, threads), ManifestSample.of(manifest)).model


def _manifest(folder: Path) -> registry_pb2.Manifest:
    """The checked manifest of a folder, without its list of files."""
    try:
        text = (folder / MANIFEST).read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        raise NotFound(f"{folder} holds no {MANIFEST}; save_model writes one") from None
    except UnicodeDecodeError:
        raise InvalidInput(f"{folder / MANIFEST} is not UTF-8") from None
    try:
        manifest = json_format.Parse(text, registry_pb2.Manifest())
    except json_format.ParseError as error:
        raise InvalidInput(f"{folder / MANIFEST} is not a manifest: {error}") from None
    if not manifest.backend:
        raise InvalidInput(f"{folder / MANIFEST} names no backend", [Violation("backend", "empty")])
    Signature.from_proto(manifest.signature)
    del manifest.files[:]
    return manifest


def source_of(manifest: registry_pb2.Manifest, folder: Path, threads: int = 1) -> ModelSource:
    """The source of a model with its files in `folder`. InvalidInput for an unusable signature."""
    return ModelSource(folder, Signature.from_proto(manifest.signature), dict(manifest.backend_options), threads)


def choose_backend(model: Any, name: str | None, plugins: Plugins) -> ModelBackend:
    """The named backend, or the one that can save `model`; InvalidInput unless there is exactly one."""
    if name is not None:
        backend = plugins.backend(name)
        if not backend.can_save(model):
            raise InvalidInput(f"backend {name!r} cannot save a {type(model).__module__}.{type(model).__qualname__}")
        return backend
    able = [backend for backend in plugins.backends() if backend.can_save(model)]
    if len(able) == 1:
        return able[0]
    unusable = "; ".join(f"{info.name}: {info.reason}" for info in plugins.info() if info.state != "ok")
    found = f"backends {', '.join(b.name for b in able)} can" if able else "no backend can"
    hint = "choose one with backend=…" if able else f"not usable here: {unusable or 'none'}"
    raise InvalidInput(f"{found} save a {type(model).__module__}.{type(model).__qualname__}; {hint}")


def _sample(sample: Mapping[str, Any]) -> dict[str, Array]:
    """The sample as arrays of supported types, at most SAMPLE_ROWS rows of each."""
    tensors: dict[str, Array] = {}
    for name, values in sample.items():
        array = np.asarray(values)
        if array.dtype.kind in "US":
            array = array.astype(object)
        elif array.dtype.kind == "M":
            array = array.astype("datetime64[us]")
        if array.ndim == 0:
            raise InvalidInput(f"sample {name!r} has no rows axis; give an array of shape [rows, …]")
        tensors[name] = np.ascontiguousarray(array[:SAMPLE_ROWS])
    return tensors


def _input_specs(
    tensors: Tensors, columns: Mapping[str, Sequence[str]], units: Mapping[str, Sequence[str]], allow_nan: bool
) -> tuple[TensorSpec, ...]:
    for name in (*columns, *units):
        if name not in tensors:
            raise InvalidInput(f"columns or units are given for {name!r}, which the sample does not have")
    return tuple(
        spec_like(name, array, tuple(columns.get(name, ())), tuple(units.get(name, ())), allow_nan)
        for name, array in tensors.items()
    )


def _reload_and_predict(backend: ModelBackend, source: ModelSource, tensors: Tensors) -> dict[str, Array]:
    """The outputs of the model for the sample, after it is loaded from its folder."""
    rows = len(next(iter(tensors.values())))
    model = CheckedModel.load(backend, source)
    try:
        outputs = dict(model.predict(tensors, rows))
    finally:
        model.close()
    for name, array in outputs.items():
        if not isinstance(array, np.ndarray) or array.ndim == 0 or len(array) != rows:
            raise BackendFault(f"output {name!r} is not an array with a row for each of the {rows} rows of the sample")
    if not outputs:
        raise BackendFault("the model answered without outputs")
    return outputs


def _columns(specs: Sequence[TensorSpec], tensors: Tensors) -> list[Column]:
    return [Column(spec.name, spec.dtype, tensors[spec.name]) for spec in specs]


def _lineage(given: registry_pb2.Lineage | None, backend: ModelBackend) -> registry_pb2.Lineage:
    """The lineage with the environment filled in: Python, numpy and what the backend needs."""
    lineage = registry_pb2.Lineage()
    if given is not None:
        lineage.CopyFrom(given)
    if lineage.environment:
        return lineage
    lineage.environment["python"] = python_version()
    distributions = packages_distributions()
    for module in ("numpy", "treadle", *backend.requires):
        for distribution in distributions.get(module, [module]):
            try:
                lineage.environment[distribution] = version(distribution)
            except PackageNotFoundError:
                continue
    return lineage


def _files(folder: Path) -> list[Path]:
    """Every file in `folder` except the manifest, sorted by path. InvalidInput for a link."""
    files = []
    for path in sorted(folder.rglob("*")):
        if path.is_symlink():
            raise InvalidInput(f"{path} is a link; a model folder holds plain files only")
        if path.is_file() and path != folder / MANIFEST:
            files.append(path)
    return files


def _file_entry(folder: Path, path: Path) -> registry_pb2.ModelFile:
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return registry_pb2.ModelFile(
        path=path.relative_to(folder).as_posix(), sha256=sha256, size_bytes=path.stat().st_size
    )
