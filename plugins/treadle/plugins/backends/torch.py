"""PyTorch models: the program as JSON of torch.export, the weights as safetensors.

`torch.load` and `torch.export.load` can run code from a file. So neither is used: the program is stored as JSON in the
schema of torch.export, restricted to allowed operators (`_torch_program`), and the weights hold numbers only.

Inputs go to `forward` by position, in the signature's order. A dict that `forward` returns names the outputs; one
tensor is "prediction"; option `outputs` names those of a tuple, or others. Models are stored as in evaluation mode.
"""

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from treadle.core.errors import InvalidInput
from treadle.plugins.backend import Example, LoadedModel, ModelBackend, ModelSource
from treadle.plugins.backends import _torch_program
from treadle.plugins.errors import BackendFault
from treadle.plugins.hookspecs import RegisterBackend, hookimpl
from treadle.plugins.tensors import Array, Tensors

PROGRAM = "program.json"
WEIGHTS = "weights.safetensors"


class TorchBackend(ModelBackend):
    """The backend of `torch.nn.Module`, exported with a dynamic number of rows."""

    name = "torch"
    options: ClassVar[Mapping[str, str]] = {"outputs": 'names of the outputs, in order: "probability,label"'}
    requires = ("torch", "safetensors")

    def can_save(self, model: Any) -> bool:
        return any(
            f"{cls.__module__}.{cls.__name__}" == "torch.nn.modules.module.Module" for cls in type(model).__mro__
        )

    def save(self, model: Any, folder: Path, sample: Tensors) -> None:
        from safetensors.torch import save_file

        inputs = _example_inputs(sample)
        with _evaluation_mode(model):
            try:
                program, weights, names = _torch_program.export(model, inputs)
            except InvalidInput:
                raise
            except Exception as error:
                reason = next(iter(str(error).strip().splitlines()), "")
                raise InvalidInput(
                    f"torch.export cannot export this {type(model).__name__} with a free number of rows: {reason}"
                ) from error
        save_file(weights, folder / WEIGHTS)
        (folder / PROGRAM).write_text(json.dumps({"outputs": names, "program": program}) + "\n", encoding="utf-8")

    def load(self, source: ModelSource) -> LoadedModel:
        self.check_options(source.options)
        try:
            from safetensors.torch import load_file

            stored = json.loads((source.folder / PROGRAM).read_text(encoding="utf-8"))
            weights = load_file(source.folder / WEIGHTS)
            runnable = _torch_program.rebuild(stored["program"], weights)
            names = stored["outputs"]
        except InvalidInput:
            raise
        except Exception as error:
            raise BackendFault(f"{PROGRAM} or {WEIGHTS} cannot be loaded: {type(error).__name__}") from error
        inputs = tuple(spec.name for spec in source.signature.inputs)
        if len(inputs) != runnable.inputs:
            raise InvalidInput(f"the model takes {runnable.inputs} inputs, the signature has {len(inputs)}")
        return _TorchModel(runnable, inputs, _names(names, source.options.get("outputs", ""), runnable), source.threads)

    def to_onnx(self, model: Any, sample: Tensors, source: ModelSource) -> bytes:
        from treadle.plugins.backends.onnx_export.torch import to_onnx

        with _evaluation_mode(model):
            return to_onnx(model, _example_inputs(sample), source.signature)

    def example(self) -> Example:
        import torch

        torch_model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Softmax(dim=1))
        rows = np.linspace(-1, 1, 24, dtype=np.float32).reshape(8, 3)
        with torch.inference_mode():
            expected = torch_model(torch.from_numpy(rows)).numpy()
        return Example(torch_model, {"features": rows}, {"prediction": expected})


class _TorchModel(LoadedModel):
    def __init__(
        self, runnable: _torch_program.Runnable, inputs: tuple[str, ...], outputs: tuple[str, ...], threads: int
    ) -> None:
        self._runnable: _torch_program.Runnable | None = runnable
        self._inputs = inputs
        self._outputs = outputs
        self._threads = threads
        self._limited = threading.local()

    def predict(self, inputs: Tensors) -> Tensors:
        import torch

        if self._runnable is None:
            raise BackendFault("the model is closed")
        if not getattr(self._limited, "done", False):
            # OpenMP has a limit for each calling thread.
            torch.set_num_threads(self._threads)
            self._limited.done = True
        with torch.inference_mode():
            answers = self._runnable.run([_tensor(inputs[name]) for name in self._inputs])
        return {name: answer.numpy() for name, answer in zip(self._outputs, answers, strict=True)}

    def close(self) -> None:
        self._runnable = None


@hookimpl
def treadle_model_backends(register: RegisterBackend) -> None:
    register(TorchBackend())


def _tensor(array: Array) -> Any:
    import torch

    if array.dtype.kind not in "biuf":
        raise InvalidInput(f"torch takes numbers, not {array.dtype}")
    # torch needs writable memory, and the bytes of requests are read-only.
    return torch.from_numpy(np.array(array) if not array.flags.writeable else np.ascontiguousarray(array))


def _example_inputs(sample: Tensors) -> tuple[Any, ...]:
    return tuple(_tensor(_two_rows(array)) for array in sample.values())


def _two_rows(array: Array) -> Array:
    # With one row in the sample, torch.export would fix the number of rows to one.
    return np.concatenate([array, array]) if len(array) == 1 else array


@contextmanager
def _evaluation_mode(model: Any) -> Iterator[None]:
    """Sets evaluation mode, and restores the mode of each module afterwards."""
    before = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in before:
            module.training = training


def _names(stored: list[str], option: str, runnable: _torch_program.Runnable) -> tuple[str, ...]:
    names = tuple(part.strip() for part in option.split(",")) if option else tuple(stored)
    if not names and runnable.outputs == 1:
        names = ("prediction",)
    if len(names) != runnable.outputs or len(set(names)) != len(names) or not all(names):
        raise InvalidInput(
            f"the model has {runnable.outputs} outputs; name each with option outputs, or let forward return a dict"
        )
    return names
