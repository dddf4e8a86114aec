"""Conversion of torch models to ONNX by torch.onnx."""

import contextlib
import io
import logging
from collections.abc import Iterator
from typing import Any

from treadle.plugins.backends._torch_program import with_flat_outputs
from treadle.plugins.backends.onnx_export.graph import require_modules
from treadle.plugins.errors import NotCompiled
from treadle.plugins.tensors import Signature

_OPSET = 18


def to_onnx(model: Any, inputs: tuple[Any, ...], signature: Signature) -> bytes:
    """The serialized ONNX model of `model` (in evaluation mode), with the names of the signature.

    `inputs` hold two rows or more, by position. NotCompiled says why there is none.
    """
    require_modules("onnx", "onnxscript")
    import torch

    flat, _ = with_flat_outputs(model, inputs)
    rows = torch.export.Dim("rows", min=1)
    with _quiet():
        program = torch.onnx.export(
            flat,
            inputs,
            dynamo=True,
            input_names=[spec.name for spec in signature.inputs],
            output_names=[spec.name for spec in signature.outputs],
            dynamic_shapes=(tuple({0: rows} for _ in inputs),),
            opset_version=_OPSET,
            verbose=False,
        )
    if program is None:
        raise NotCompiled("torch.onnx gave no program")
    data: bytes = _stripped(program.model_proto).SerializeToString()
    return data


def _stripped(model: Any) -> Any:
    """The model without the parts that only debuggers read: stack traces with the author's paths."""
    graph = model.graph
    nodes = [node for function in model.functions for node in function.node]
    for part in (model, graph, *graph.node, *nodes, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        del part.metadata_props[:]
        part.doc_string = ""
    return model


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppresses the progress output of the exporter, and its warnings of optional libraries."""
    log = logging.getLogger("torch.onnx")
    children = [each for name, each in log.manager.loggerDict.items() if name.startswith("torch.onnx.")]
    loggers = [log, *(each for each in children if isinstance(each, logging.Logger))]
    levels = [each.level for each in loggers]
    for each in loggers:
        each.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        for each, level in zip(loggers, levels, strict=True):
            each.setLevel(level)
