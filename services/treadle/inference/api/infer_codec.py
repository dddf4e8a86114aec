"""Requests and answers of one model version as messages; what repeats is recognised by its bytes.

Callers send the same few headers again and again: names, datatypes and shapes, with other values behind them. A header
that has passed every check once is remembered as the bytes that it travels as, and so is what an answer begins with.
The next request with it costs one look-up, and its values stay bytes until they are joined with those of its batch.
Whatever is not known takes the full way, which is also how it becomes known.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod

from treadle import oip
from treadle.core.dtypes import numpy_dtype
from treadle.core.errors import InvalidInput, Violation
from treadle.inference.batching.batch import Answer, Layout, Raws
from treadle.inference.models.models import Registered
from treadle.plugins.tensor_spec import TensorSpec
from treadle.plugins.tensors import Array, Tensors
from treadle.rpc.codec.tensors import DTYPE_PARAMETER, decode_inputs, encode_outputs, raw_bytes, wire_dtype

MOST_REMEMBERED = 4096
"""Headers differ by their rows alone, unless somebody makes them up: then all are forgotten at this number."""
_TENSOR_PARAMETERS = frozenset({"binary_data", "binary_data_size", "content_type", DTYPE_PARAMETER})


def refuse_unknown(parameters: Mapping[str, object], known: frozenset[str], where: str) -> None:
    """InvalidInput for parameters that are not among `known`: what is not understood must not seem to be heeded."""
    unknown = sorted(parameters.keys() - known)
    if unknown:
        raise InvalidInput(
            f"{where} has parameters that mean nothing here: {', '.join(unknown)[:200]}; leave them out",
            [Violation(f"parameters.{name[:64]}", f"unknown; {where} may have {sorted(known)}") for name in unknown],
        )


@dataclass(slots=True)
class Selection:
    """The outputs that a request asks for, in its order."""

    names: tuple[str, ...]
    row_bytes: tuple[int, ...] | None
    """Bytes of one row of each; None where they are not all of a fixed size."""
    heads: dict[int, list[bytes]] = field(default_factory=dict)
    """By the rows of an answer: what it begins with, and what stands before the raw contents of each output."""


class Wire:
    """The messages of one model version."""

    def __init__(self, registered: Registered, max_batch_rows: int) -> None:
        signature = registered.signature
        self.layout = Layout.of(signature)
        self._registered = registered
        self._most_rows = max_batch_rows
        self._restored = {spec.name: spec.dtype for spec in signature.inputs if wire_dtype(spec.dtype) != spec.dtype}
        """Inputs whose dtype has no name on the wire: STRING, TIMESTAMP."""
        self._outputs = {spec.name: spec for spec in signature.outputs}
        self._headers: dict[bytes, tuple[int, int, int]] = {}
        """Position, rows and length of the raw contents, by the bytes of an input without them."""
        self._selections: dict[tuple[bytes, ...], Selection] = {}
        self._everything = _selection(tuple(self._outputs), self._outputs)

    def known(self, request: oip.ModelInferRequest) -> tuple[Raws, int] | None:
        """The inputs, as bytes, and their rows, of a request all of whose headers are known."""
        raws, pbs, rows = request.raw_input_contents[:], request.inputs, 0
        if not raws or len(raws) != len(pbs):
            return None
        for position, raw in enumerate(raws):
            found = self._headers.get(pbs[position].SerializeToString())
            if found is None or found[0] != position or found[2] != len(raw) or (found[1] != rows and position):
                return None
            rows = found[1]
        return raws, rows

    def read(self, request: oip.ModelInferRequest) -> tuple[Tensors, int]:
        """The inputs as arrays, and their rows; checked. InvalidInput if they do not fit the signature."""
        for pb in request.inputs:
            if pb.parameters:
                refuse_unknown(pb.parameters, _TENSOR_PARAMETERS, f"inputs[{pb.name}]")
        inputs = decode_inputs(request, self._restored)
        rows = self._registered.signature.check_inputs(inputs)
        if self.layout is not None and rows <= self._most_rows:
            self._remember(request, rows, self.layout)
        return inputs, rows

    def _remember(self, request: oip.ModelInferRequest, rows: int, layout: Layout) -> None:
        if not request.raw_input_contents or tuple(pb.name for pb in request.inputs) != layout.names:
            return
        if len(self._headers) >= MOST_REMEMBERED:
            self._headers.clear()
        for position, pb in enumerate(request.inputs):
            self._headers[pb.SerializeToString()] = (position, rows, rows * layout.row_bytes[position])

    def selection(self, asked: Sequence[oip.ModelInferRequest.InferRequestedOutputTensor]) -> Selection:
        """All outputs if none is asked for. InvalidInput for one that is unknown or asked for twice."""
        if not asked:
            return self._everything
        key = tuple(output.SerializeToString() for output in asked)
        found = self._selections.get(key)
        if found is None:
            self._check(asked)
            if len(self._selections) >= MOST_REMEMBERED:
                self._selections.clear()
            found = self._selections[key] = _selection(tuple(output.name for output in asked), self._outputs)
        return found

    def _check(self, asked: Sequence[oip.ModelInferRequest.InferRequestedOutputTensor]) -> None:
        seen: set[str] = set()
        for output in asked:
            place = f"outputs[{output.name}]"
            if output.name in seen or output.name not in self._outputs:
                what = "is asked for twice" if output.name in seen else f"is unknown; the model has {[*self._outputs]}"
                raise InvalidInput(f"{place} {what}", [Violation(place, "unknown or asked for twice")])
            seen.add(output.name)
            refuse_unknown(output.parameters, _TENSOR_PARAMETERS, place)

    def respond(self, answer: Answer, selection: Selection, *, raw: bool) -> oip.ModelInferResponse:
        """The answer with the outputs asked for, raw or typed; without the request's id."""
        if not raw or selection.row_bytes is None or answer.joined is not None:
            return self._response(answer.outputs, selection, raw=raw)
        rows, batch = answer.rows, answer.batch
        head, *marks = selection.heads.get(rows) or self._head(answer, selection)
        parts = [head]
        for name, size, mark in zip(selection.names, selection.row_bytes, marks, strict=True):
            packed = batch.packed.get(name)
            if packed is None:  # made by the first answer that needs it, for all
                packed = batch.packed[name] = raw_bytes(batch.outputs[name], name)
            parts += (mark, packed[answer.at * size : (answer.at + rows) * size])
        return oip.ModelInferResponse.FromString(b"".join(parts))

    def _head(self, answer: Answer, selection: Selection) -> list[bytes]:
        response = self._response(answer.outputs, selection, raw=True)
        marks = [_mark(raw) for raw in response.raw_output_contents]
        del response.raw_output_contents[:]
        head = selection.heads[answer.rows] = [response.SerializeToString(), *marks]
        return head

    def _response(self, outputs: Mapping[str, Array], selection: Selection, *, raw: bool) -> oip.ModelInferResponse:
        key = self._registered.key
        response = oip.ModelInferResponse(model_name=key.model, model_version=str(key.version))
        encode_outputs(response, {name: outputs[name] for name in selection.names}, raw=raw)
        return response


def _mark(raw: bytes) -> bytes:
    """What stands before raw contents of this length: their field and the length, as protobuf writes them."""
    alone = oip.ModelInferResponse(raw_output_contents=[raw]).SerializeToString()
    return alone[: len(alone) - len(raw)]


def _selection(names: tuple[str, ...], outputs: Mapping[str, TensorSpec]) -> Selection:
    sizes = [_row_bytes(outputs[name]) for name in names]
    return Selection(names, tuple(size for size in sizes if size) if all(sizes) else None)


def _row_bytes(spec: TensorSpec) -> int:
    """0 where rows have no fixed size."""
    if spec.dtype in {"STRING", "BYTES"} or -1 in spec.shape[1:]:
        return 0
    return numpy_dtype(spec.dtype).itemsize * prod(spec.shape[1:])
