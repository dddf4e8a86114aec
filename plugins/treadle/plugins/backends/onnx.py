"""ONNX, run by ONNX Runtime.

Inputs and outputs are the graph's own, by name. Option `outputs` picks and renames them. Classifiers converted from
scikit-learn require_modules `zipmap` off: a list of maps is no tensor.
"""

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from treadle.core.errors import InvalidInput, Violation
from treadle.plugins.backend import Example, LoadedModel, ModelBackend, ModelSource
from treadle.plugins.errors import BackendFault, NotCompiled
from treadle.plugins.hookspecs import RegisterBackend, hookimpl
from treadle.plugins.tensors import Signature, Tensors

FILE = "model.onnx"

_DTYPES = {
    "tensor(bool)": "BOOL",
    "tensor(int8)": "INT8",
    "tensor(int16)": "INT16",
    "tensor(int32)": "INT32",
    "tensor(int64)": "INT64",
    "tensor(uint8)": "UINT8",
    "tensor(uint16)": "UINT16",
    "tensor(uint32)": "UINT32",
    "tensor(uint64)": "UINT64",
    "tensor(float16)": "FP16",
    "tensor(float)": "FP32",
    "tensor(double)": "FP64",
    "tensor(string)": "STRING",
}
# The names of outputs that the converters of scikit-learn, XGBoost and LightGBM give, and Treadle's names for them.
_CONVERTER_OUTPUT_NAMES = {"output_label": "label", "probabilities": "probability", "output_probability": "probability"}

# prediction = -x, for rows of three floats.
_EXAMPLE = (
    "CAgSADpUChQKAXgSCnByZWRpY3Rpb24iA05lZxIBZ1oXCgF4EhIKEAgBEgwKBhIEcm93cwoCCANiIAoKcHJlZGljdGlvbhISChAIARIMCgYSBHJv"
    "d3MKAggDQgQKABAN"
)


class OnnxBackend(ModelBackend):
    """`onnx.ModelProto`, its bytes, or the path of an .onnx file."""

    name = "onnx"
    options: ClassVar[Mapping[str, str]] = {
        "outputs": 'outputs and their names: "probability=probabilities,label"; default: all, as named'
    }
    requires = ("onnxruntime",)

    def can_save(self, model: Any) -> bool:
        is_proto = type(model).__name__ == "ModelProto" and type(model).__module__.startswith("onnx")
        return is_proto or isinstance(model, bytes) or (isinstance(model, Path) and model.suffix == ".onnx")

    def inferred_options(self, model: Any) -> dict[str, str]:
        """Renames outputs such as "probabilities" to the names that the rest of Treadle expects."""
        if isinstance(model, Path | bytes):
            return {}
        names = [output.name for output in model.graph.output]
        if not any(name in _CONVERTER_OUTPUT_NAMES for name in names):
            return {}
        return {"outputs": ",".join(f"{_CONVERTER_OUTPUT_NAMES.get(name, name)}={name}" for name in names)}

    def save(self, model: Any, folder: Path, sample: Tensors) -> None:
        if isinstance(model, Path):
            model = model.read_bytes()
        (folder / FILE).write_bytes(model if isinstance(model, bytes) else model.SerializeToString())

    def load(self, source: ModelSource) -> LoadedModel:
        import onnxruntime

        self.check_options(source.options)
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = source.threads
        settings.inter_op_num_threads = 1
        # Waiting threads sleep: spinning ones take the cores that the other models need.
        settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
        settings.log_severity_level = 4
        try:
            # From bytes, not from the path, so that a model cannot name other files as its weights.
            data = (source.folder / FILE).read_bytes()
            session = onnxruntime.InferenceSession(data, settings, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise BackendFault(f"{FILE} cannot be loaded: {type(error).__name__}") from error
        _check_inputs(session, source.signature)
        return _OnnxModel(session, _outputs(session, source.options.get("outputs", "")))

    def to_onnx(self, model: Any, sample: Tensors, source: ModelSource) -> bytes:
        raise NotCompiled("it is ONNX already")

    def example(self) -> Example:
        rows = np.linspace(-1, 1, 24, dtype=np.float32).reshape(8, 3)
        return Example(base64.b64decode(_EXAMPLE), {"x": rows}, {"prediction": -rows})


class _OnnxModel(LoadedModel):
    bounded = True

    def __init__(self, session: Any, outputs: dict[str, str]) -> None:
        self._session = session
        self._names = tuple(outputs)
        self._wanted = list(outputs.values())

    def predict(self, inputs: Tensors) -> Tensors:
        # One row takes a few microseconds, so dicts are not copied.
        asked = inputs if type(inputs) is dict else dict(inputs)
        return dict(zip(self._names, self._session.run(self._wanted, asked), strict=True))

    def close(self) -> None:
        self._session = None


@hookimpl
def treadle_model_backends(register: RegisterBackend) -> None:
    register(OnnxBackend())


def _check_inputs(session: Any, signature: Signature) -> None:
    """Raises InvalidInput unless the signature's inputs are the graph's."""
    graph = {node.name: node for node in session.get_inputs()}
    violations = [Violation(name, "the graph wants it, the signature lacks it") for name in graph]
    violations = [v for v in violations if v.field not in {spec.name for spec in signature.inputs}]
    for spec in signature.inputs:
        node = graph.get(spec.name)
        if node is None:
            violations.append(Violation(spec.name, f"not in the graph, whose inputs are {', '.join(graph)}"))
        elif _DTYPES.get(node.type) != spec.dtype:
            violations.append(Violation(spec.name, f"is {spec.dtype}, the graph wants {node.type}"))
        elif not _fits(node.shape, spec.shape):
            violations.append(Violation(spec.name, f"has shape {list(spec.shape)}, the graph wants {node.shape}"))
    if violations:
        raise InvalidInput("the signature's inputs are not those of the ONNX graph", violations)


def _fits(graph: list[int | str | None], shape: tuple[int, ...]) -> bool:
    """Whether the graph takes any number of rows and the signature's other sizes."""
    if len(graph) != len(shape) or isinstance(graph[0], int):
        return False
    return all(not isinstance(g, int) or n in (-1, g) for g, n in zip(graph[1:], shape[1:], strict=True))


def _outputs(session: Any, option: str) -> dict[str, str]:
    """The output of the graph for each name of an output in the signature."""
    graph = {node.name: node.type for node in session.get_outputs()}
    pairs = [part.strip().partition("=") for part in option.split(",")] if option else [(n, "", "") for n in graph]
    outputs = {name: source or name for name, _, source in pairs}
    if len(outputs) != len(pairs) or not set(outputs.values()) <= set(graph):
        raise InvalidInput(
            f"option outputs is {option!r}; wanted NAME=OUTPUT,… with OUTPUT one of {', '.join(graph)}",
            [Violation("backend_options.outputs", "names an output twice, or one that the graph lacks")],
        )
    for source in outputs.values():
        if graph[source] not in _DTYPES:
            raise InvalidInput(
                f"output {source!r} is {graph[source]}, not a tensor; convert the model with zipmap off "
                '(skl2onnx: options={"zipmap": False}), or leave the output out with option outputs'
            )
    return outputs
