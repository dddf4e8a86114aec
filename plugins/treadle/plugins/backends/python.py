"""Heuristics: functions that are installed where models run, for fallbacks and baselines.

A function takes a dict of arrays and returns a dict of arrays. The model folder holds only its import path and the
digest of its module's source: a server with another source refuses to load it.
"""

import hashlib
import importlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FunctionType
from typing import Any, ClassVar, TypeAlias

import numpy as np

from treadle.core.errors import DataLoss, InvalidInput
from treadle.plugins.backend import Example, LoadedModel, ModelBackend, ModelSource
from treadle.plugins.errors import BackendFault
from treadle.plugins.hookspecs import RegisterBackend, hookimpl
from treadle.plugins.tensors import Array, Tensors

FILE = "function.json"
Heuristic: TypeAlias = Callable[[dict[str, Array]], dict[str, Array]]


def echo(inputs: dict[str, Array]) -> dict[str, Array]:
    """The example of the backend: returns copies of its inputs."""
    return {name: array.copy() for name, array in inputs.items()}


class PythonBackend(ModelBackend):
    """The backend of functions at the top level of importable modules."""

    name = "python"
    options: ClassVar[Mapping[str, str]] = {"function": '"package.module:function"'}

    def can_save(self, model: Any) -> bool:
        return isinstance(model, FunctionType)

    def inferred_options(self, model: Any) -> dict[str, str]:
        return {"function": _reference(model)}

    def save(self, model: Any, folder: Path, sample: Tensors) -> None:
        reference = _reference(model)
        found, digest = _find(reference)
        if found is not model:
            raise InvalidInput(f"{reference} is not this function; decorators and reloads make another one")
        (folder / FILE).write_text(json.dumps({"function": reference, "source_sha256": digest}, indent=2) + "\n")

    def load(self, source: ModelSource) -> LoadedModel:
        self.check_options(source.options)
        stored = _stored(source.folder / FILE)
        reference = source.options.get("function", stored["function"])
        if reference != stored["function"]:
            raise InvalidInput(f"option function is {reference!r}, the model was saved from {stored['function']!r}")
        function, digest = _find(reference)
        if digest != stored["source_sha256"]:
            raise DataLoss(
                f"the source of {reference} is not the one the model was saved from; install that release here, or "
                "register the model anew"
            )
        return _PythonModel(function)

    def example(self) -> Example:
        rows = np.linspace(0, 1, 8)
        return Example(echo, {"prediction": rows}, {"prediction": rows})


class _PythonModel(LoadedModel):
    def __init__(self, function: Heuristic) -> None:
        self._function = function

    def predict(self, inputs: Tensors) -> Tensors:
        outputs = self._function(dict(inputs))
        if not isinstance(outputs, dict):
            raise BackendFault(f"the function answered with a {type(outputs).__name__}, not a dict of arrays")
        return {name: _array(value) for name, value in outputs.items()}


@hookimpl
def treadle_model_backends(register: RegisterBackend) -> None:
    register(PythonBackend())


def _array(value: Any) -> Array:
    array = np.asarray(value)
    return array.astype(object) if array.dtype.kind in "US" else array


def _reference(function: Any) -> str:
    """The import path "package.module:function"; InvalidInput for a function that another process cannot import."""
    module, name = function.__module__, function.__qualname__
    if module == "__main__" or "<" in name or "." in name:
        raise InvalidInput(f"{module}:{name} cannot be imported by a server; put it at the top level of a module")
    return f"{module}:{name}"


def _find(reference: str) -> tuple[Heuristic, str]:
    """The function and the SHA-256 of its module's source."""
    module_name, _, name = reference.partition(":")
    if not all(part.isidentifier() for part in (*module_name.split("."), name)):
        raise InvalidInput(f"function {reference!r} is not of the form package.module:function")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise InvalidInput(
            f"module {module_name!r} cannot be imported here: {error}; install it on the server"
        ) from error
    function = getattr(module, name, None)
    if not isinstance(function, FunctionType) or not module.__file__:
        raise InvalidInput(f"module {module_name!r} has no function {name!r} written in Python")
    return function, hashlib.sha256(Path(module.__file__).read_bytes()).hexdigest()


def _stored(file: Path) -> dict[str, str]:
    try:
        stored = json.loads(file.read_text(encoding="utf-8"))
        return {"function": str(stored["function"]), "source_sha256": str(stored["source_sha256"])}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BackendFault(f"{FILE} cannot be read: {type(error).__name__}") from error
