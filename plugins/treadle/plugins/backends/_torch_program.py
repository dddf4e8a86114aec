"""Programs of torch.export as JSON and weights, and back, restricted to a list of allowed operators.

torch's own reader evaluates symbolic sizes as Python, writes names into generated code and looks operators up by any
path below `torch`. So everything is checked before it reaches that reader: sizes are arithmetic, names are identifiers,
operators belong to ATen.

The serializer is internal to torch, which is why torch is pinned to one release.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from treadle.core.errors import InvalidInput

_PLAIN = re.compile(r"[\w.:+\-]*")
# Sizes are written as sympy's constructors: Mul(Integer(2), Symbol('s0', positive=True, integer=True)).
_SYMBOL = re.compile(r"Symbol\('[a-z]+\d+'(, [a-z]+=(True|False))*\)")
_SIZE = re.compile(
    r"(?:\b(?:Add|And|CleanDiv|Equality|Float|FloorDiv|GreaterThan|Integer|LessThan|Max|Min|Mod|Mul|Not|Or|Pow|PythonMod"
    r"|Rational|StrictGreaterThan|StrictLessThan|Unequality|false|size|true)\b|-?\d+(?:\.\d+)?|[(), ])*"
)
_OPERATORS = re.compile(
    r"torch\.ops\.aten\.[a-z_0-9]+\.[A-Za-z_0-9]+"
    r"|_operator\.(add|sub|mul|floordiv|truediv|mod|neg|pow|eq|ne|lt|le|gt|ge|getitem|and_|or_)"
    r"|torch\.sym_(max|min|int|float|not|sum)"
)
_FORBIDDEN = re.compile(
    r"torch\.ops\.aten\.(from_file|_?save|set_)\b.*"
)  # operators that access more than their arguments
_TREE_TYPES = frozenset({None, "builtins.tuple", "builtins.list", "builtins.dict"})


@dataclass(frozen=True)
class Runnable:
    """A graph with its weights."""

    graph: Any
    weights: list[Any]
    inputs: int
    outputs: int

    def run(self, tensors: Sequence[Any]) -> Sequence[Any]:
        """The outputs, in the order of the program."""
        answer: Sequence[Any] = self.graph(*self.weights, *tensors)
        return answer


def export(model: Any, inputs: tuple[Any, ...]) -> tuple[dict[str, Any], dict[str, Any], list[str]]:
    """The program, its weights by name, and the names of the outputs (none unless `model` returns a dict)."""
    import torch
    from torch._export.serde import serialize

    flat, names = with_flat_outputs(model, inputs)
    rows = torch.export.Dim("rows", min=1)
    exported = torch.export.export(flat, inputs, dynamic_shapes=(tuple({0: rows} for _ in inputs),), strict=False)
    exported.example_inputs = None
    program = json.loads(serialize.serialize(exported).exported_program)
    _strip(program)
    _check(program)
    weights = {f"{_role(tensor)}.{name}": tensor for name, tensor in exported.state_dict.items()}
    for name, constant in exported.constants.items():
        if not isinstance(constant, torch.Tensor):
            raise InvalidInput(f"constant {name!r} of the model is no tensor; it cannot be stored safely")
        weights[f"constant.{name}"] = constant
    # Clones, because safetensors refuses tensors that share memory, as tied weights do.
    return program, {name: tensor.detach().clone().contiguous() for name, tensor in weights.items()}, names


def rebuild(program: dict[str, Any], weights: Mapping[str, Any]) -> Runnable:
    """The program as a runnable graph.

    Raises InvalidInput for a program that holds anything that is not allowed; other errors mean that it is corrupt.
    """
    from torch._export.serde import schema, serialize
    from torch.export.graph_signature import InputKind, OutputKind

    _strip(program)
    _check(program)
    parsed = serialize._bytes_to_dataclass(schema.ExportedProgram, json.dumps(program).encode())  # noqa: SLF001  # no public way
    state, constants = _by_role(weights)
    # The deserializer unpickles bytes, but takes dicts as they are.
    exported = serialize.ExportedProgramDeserializer().deserialize(parsed, state, constants, None)
    lifted, inputs = [], 0
    for spec in exported.graph_signature.input_specs:
        if spec.kind is InputKind.USER_INPUT:
            inputs += 1
        elif spec.target in state:
            lifted.append(exported.state_dict[spec.target])
        else:
            lifted.append(exported.constants[spec.target])
    kinds = {spec.kind for spec in exported.graph_signature.output_specs}
    if kinds != {OutputKind.USER_OUTPUT}:
        raise InvalidInput("the model changes its own state or its inputs when it predicts; make forward pure")
    return Runnable(exported.graph_module, lifted, inputs, len(exported.graph_signature.output_specs))


def _role(tensor: Any) -> str:
    import torch

    return "parameter" if isinstance(tensor, torch.nn.Parameter) else "buffer"


def _by_role(weights: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The state (parameters and buffers) and the constants, by their names in the program."""
    import torch

    state, constants = {}, {}
    for full, tensor in weights.items():
        role, _, name = full.partition(".")
        if role == "constant":
            constants[name] = tensor
        else:
            state[name] = torch.nn.Parameter(tensor, requires_grad=False) if role == "parameter" else tensor
    return state, constants


def with_flat_outputs(model: Any, inputs: tuple[Any, ...]) -> tuple[Any, list[str]]:
    """A module that returns the outputs of `model` as a tuple, and their names if `model` returns a dict."""
    import torch

    with torch.inference_mode():
        example = model(*inputs)
    names = list(example) if isinstance(example, Mapping) else []

    class Flat(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, *tensors: Any) -> Any:
            answer = self.model(*tensors)
            if names:
                return tuple(answer[name] for name in names)
            return tuple(answer) if isinstance(answer, tuple | list) else (answer,)

    return Flat(), names


def _strip(program: dict[str, Any]) -> None:
    """Removes the parts that only debuggers read: source paths, guards, the tree of modules."""
    program["guards_code"] = []
    module = program["graph_module"]
    module["module_call_graph"] = module["module_call_graph"][:1]
    module["metadata"] = {}
    for node in module["graph"]["nodes"]:
        node["metadata"] = {}


def _check(value: Any, key: str = "") -> None:
    """Raises InvalidInput for a string that torch might evaluate or look up."""
    if isinstance(value, dict):
        for name, inner in value.items():
            _check_string("", name)
            _check(inner, name)
    elif isinstance(value, list):
        for inner in value:
            _check(inner, key)
    elif isinstance(value, str):
        _check_string(key, value)


def _check_string(key: str, text: str) -> None:
    if key in {"as_string", "as_strings"}:  # an argument of an operator, which torch only passes on
        return
    if key in {"in_spec", "out_spec"}:
        fine = _is_tree(json.loads(text))
    elif key == "target" and ("." in text or "(" in text):
        fine = bool(_OPERATORS.fullmatch(text)) and not _FORBIDDEN.fullmatch(text)
    elif key == "expr_str":
        fine = bool(_SIZE.fullmatch(_SYMBOL.sub("size", text)))
    else:
        fine = bool(_PLAIN.fullmatch(text))
    if not fine:
        raise InvalidInput(f"the program holds {key or 'name'} {text[:80]!r}, which the torch backend does not run")


def _is_tree(spec: Any) -> bool:
    """Whether a pytree spec has only tuples, lists and empty dicts."""
    if isinstance(spec, list):  # [version, tree]
        return len(spec) == 2 and spec[0] == 1 and _is_tree(spec[1])
    return (
        isinstance(spec, dict)
        and spec.get("type") in _TREE_TYPES
        and spec.get("context") in (None, "null", "[]")
        and all(_is_tree(child) for child in spec.get("children_spec", ()))
    )
