"""Conversion by skl2onnx, with a custom converter of one-hot encoders; ONNX Runtime must be able to run the result."""

from typing import Any

import numpy as np

from treadle.plugins.backends.onnx_export.graph import OPSETS, require_modules
from treadle.plugins.errors import NotCompiled

INPUT = "matrix"
"""The name of the input of the converted model."""


def convert(model: Any, dtype: str, features: int) -> Any:
    """The ONNX model of an estimator or of a pipeline of transformers, with one input. NotCompiled if there is none."""
    require_modules("skl2onnx", "onnxruntime")
    if not features:
        raise NotCompiled("the number of its features is not known")
    try:
        body = _convert(model, dtype, features)
        session_for(body)
    except NotCompiled:
        raise
    except Exception as error:  # skl2onnx and ONNX Runtime raise anything for what they do not support
        reason = next(iter(str(error).strip().splitlines()), "")[:200]
        raise NotCompiled(f"skl2onnx cannot convert it for {dtype} inputs: {type(error).__name__}: {reason}") from error
    return body


def session_for(body: Any) -> Any:
    """A session of ONNX Runtime for a model, with one thread."""
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = settings.inter_op_num_threads = 1
    settings.log_severity_level = 4
    return onnxruntime.InferenceSession(body.SerializeToString(), settings, providers=["CPUExecutionProvider"])


def _convert(model: Any, dtype: str, features: int) -> Any:
    from skl2onnx import convert_sklearn
    from skl2onnx.common.data_types import DoubleTensorType, FloatTensorType
    from sklearn.base import is_classifier
    from sklearn.preprocessing import OneHotEncoder

    kind = FloatTensorType if dtype == "FP32" else DoubleTensorType
    arguments = {
        "initial_types": [(INPUT, kind([None, features]))],
        "target_opset": OPSETS,
        "custom_conversion_functions": {OneHotEncoder: _one_hot},
        "custom_shape_calculators": {OneHotEncoder: _one_hot_shape},
    }
    if is_classifier(model):
        try:
            return convert_sklearn(model, options={id(model): {"zipmap": False}}, **arguments)
        except NameError:  # a model without this option has no map as its output
            pass
    return convert_sklearn(model, **arguments)


def _one_hot_shape(operator: Any) -> None:
    encoder, (given, *others) = operator.raw_operator, operator.inputs
    if others:
        raise NotCompiled("its one-hot encoder takes several inputs")
    width = sum(len(categories) for categories in encoder.categories_)
    operator.outputs[0].type = type(given.type)([given.get_first_dimension(), width])


def _one_hot(scope: Any, operator: Any, container: Any) -> None:
    """Compares numbers with categories exactly. skl2onnx would truncate them to whole numbers: 1.4 would match 1.

    If the encoder refuses unknown categories, so does the graph: a look-up fails.
    """
    encoder, given, encoded = operator.raw_operator, operator.inputs[0], operator.outputs[0].full_name
    if encoder.drop is not None or encoder.handle_unknown not in {"error", "ignore"} or _infrequent(encoder):
        raise NotCompiled("its one-hot encoder drops or joins categories")

    def add(op: str, *inputs: str, **attributes: Any) -> str:
        output = scope.get_unique_variable_name("one_hot")
        container.add_node(op, list(inputs), [output], name=scope.get_unique_operator_name(op), **attributes)
        return str(output)

    def constant(values: Any) -> str:
        from onnx import numpy_helper

        output = scope.get_unique_variable_name("one_hot")
        container.add_node(
            "Constant", [], [output], name=scope.get_unique_operator_name("c"), value=numpy_helper.from_array(values)
        )
        return str(output)

    number = np.float32 if type(given.type).__name__.startswith("Float") else np.float64
    to = 1 if number is np.float32 else 11
    columns = []
    for index, categories in enumerate(encoder.categories_):
        column = add("Gather", given.full_name, constant(np.array([index])), axis=1)
        equal = add("Cast", add("Equal", column, constant(np.asarray(categories, number)[np.newaxis])), to=to)
        if encoder.handle_unknown == "error":
            known = add("Cast", add("ReduceMax", equal, axes=[1], keepdims=1), to=7)
            # Index 0 where the category is known, 1 where it is not: there is no 1.
            one = add("Gather", constant(np.ones(1, number)), add("Sub", constant(np.ones(1, np.int64)), known))
            equal = add("Mul", equal, one)
        columns.append(equal)
    container.add_node("Concat", columns, [encoded], name=scope.get_unique_operator_name("Concat"), axis=1)


def _infrequent(encoder: Any) -> bool:
    return encoder.min_frequency is not None or encoder.max_categories is not None
