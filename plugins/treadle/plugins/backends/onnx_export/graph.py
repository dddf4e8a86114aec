"""Builder of an ONNX graph for a signature: its inputs as one matrix, its outputs by name, dtype and shape.

The opsets are supported by every ONNX Runtime that Treadle accepts.
"""

import importlib.util
from collections.abc import Mapping
from typing import Any

import numpy as np

from treadle.plugins.errors import NotCompiled
from treadle.plugins.tensor_spec import TensorSpec
from treadle.plugins.tensors import Signature

OPSETS = {"": 17, "ai.onnx.ml": 3}
_IR_VERSION = 8
_BODY_PREFIX = "body/"

_ONNX_TYPES = {
    "BOOL": "BOOL",
    "INT8": "INT8",
    "INT16": "INT16",
    "INT32": "INT32",
    "INT64": "INT64",
    "UINT8": "UINT8",
    "UINT16": "UINT16",
    "UINT32": "UINT32",
    "UINT64": "UINT64",
    "FP16": "FLOAT16",
    "FP32": "FLOAT",
    "FP64": "DOUBLE",
    "STRING": "STRING",
}


def require_modules(*modules: str) -> None:
    """Raises NotCompiled, with the packages to install, if one of the modules is missing."""
    missing = [module for module in modules if importlib.util.find_spec(module) is None]
    if missing:
        raise NotCompiled(f"needs {', '.join(missing)}, not installed here; pip install 'treadle[compile]'")


class Graph:
    """Builds an ONNX graph. Methods take and return the names of its values."""

    def __init__(self, signature: Signature) -> None:
        require_modules("onnx")
        shared = {spec.name for spec in signature.inputs} & {spec.name for spec in signature.outputs}
        if shared:
            raise NotCompiled(f"{', '.join(sorted(shared))} is an input and an output; ONNX tells them apart by name")
        self._signature = signature
        self._nodes: list[Any] = []
        self._constants: list[Any] = []

    def add(self, op: str, *inputs: str, domain: str = "", **attributes: Any) -> str:
        """Adds a node with one output, and returns the name of the output."""
        from onnx import helper

        name = f"graph/{len(self._nodes)}"
        self._nodes.append(helper.make_node(op, list(inputs), [name], domain=domain, **attributes))
        return name

    def constant(self, values: Any) -> str:
        """Adds a constant, and returns its name."""
        from onnx import numpy_helper

        name = f"constant/{len(self._constants)}"
        self._constants.append(numpy_helper.from_array(np.asarray(values), name))
        return name

    def cast(self, value: str, dtype: str) -> str:
        """Adds a cast of a value to another data type ("FP32", …)."""
        from onnx import TensorProto

        return self.add("Cast", value, to=getattr(TensorProto, _ONNX_TYPES[dtype]))

    def matrix(self) -> tuple[str, str]:
        """Adds the matrix [rows, features] of all inputs. Returns its name and its data type (see `matrix_dtype`)."""
        dtype = matrix_dtype(self._signature)
        columns = []
        for spec in self._signature.inputs:
            value = spec.name if spec.dtype == dtype else self.cast(spec.name, dtype)
            columns.append(self.add("Reshape", value, self.constant([-1, 1])) if len(spec.shape) == 1 else value)
        return columns[0] if len(columns) == 1 else self.add("Concat", *columns, axis=1), dtype

    def embed(self, body: Any, matrix: str) -> list[tuple[str, int]]:
        """Adds the nodes of a model with one input. Returns the names of its outputs, in order, with their ranks."""
        from onnx import compose, helper

        inner = compose.add_prefix(body, _BODY_PREFIX).graph
        self._nodes.append(helper.make_node("Identity", [matrix], [inner.input[0].name]))
        self._nodes.extend(inner.node)
        self._constants.extend(inner.initializer)
        return [(output.name, len(output.type.tensor_type.shape.dim)) for output in inner.output]

    def finish(self, answers: Mapping[str, str]) -> bytes:
        """The serialized model. `answers` has the value of each output of the signature, by name."""
        from onnx import checker, helper

        for spec in self._signature.outputs:
            self._add_output(spec, answers)
        graph = helper.make_graph(
            self._nodes,
            "model",
            [_value_info(spec) for spec in self._signature.inputs],
            [_value_info(spec) for spec in self._signature.outputs],
            self._constants,
        )
        opsets = [helper.make_opsetid(domain, version) for domain, version in OPSETS.items()]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=_IR_VERSION, producer_name="treadle")
        checker.check_model(model)
        data: bytes = model.SerializeToString()
        return data

    def _add_output(self, spec: TensorSpec, answers: Mapping[str, str]) -> None:
        from onnx import TensorProto, helper

        if spec.name not in answers:
            raise NotCompiled(f"its ONNX form has no output {spec.name!r}")
        value = answers[spec.name]
        # ONNX Runtime removes casts that change nothing.
        if spec.dtype == "STRING":
            self._nodes.append(helper.make_node("Identity", [value], [spec.name]))
        else:
            to = getattr(TensorProto, _ONNX_TYPES[spec.dtype])
            self._nodes.append(helper.make_node("Cast", [value], [spec.name], to=to))


def matrix_dtype(signature: Signature) -> str:
    """The data type of the matrix of all inputs: FP32 if numpy would promote them to FP32, else FP64.

    NotCompiled for inputs that are no numbers.
    """
    for spec in signature.inputs:
        if spec.dtype not in _ONNX_TYPES or spec.dtype in {"FP16", "STRING"}:
            raise NotCompiled(f"input {spec.name!r} is {spec.dtype}, which its ONNX form does not take")
    small = {"FP32", "BOOL", "INT8", "INT16", "UINT8", "UINT16"}  # numpy gives FP32 for FP32 beside any of these
    dtypes = {spec.dtype for spec in signature.inputs}
    return "FP32" if "FP32" in dtypes and dtypes <= small else "FP64"


def _value_info(spec: TensorSpec) -> Any:
    from onnx import TensorProto, helper

    if spec.dtype not in _ONNX_TYPES:
        raise NotCompiled(f"{spec.name!r} is {spec.dtype}, which ONNX does not have")
    shape = ["rows", *(None if size < 0 else size for size in spec.shape[1:])]
    return helper.make_tensor_value_info(spec.name, getattr(TensorProto, _ONNX_TYPES[spec.dtype]), shape)
