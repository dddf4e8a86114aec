"""Codec of the ModelInfer messages of one model version, with a cache of validated request headers.

Callers send the same few headers (names, datatypes and shapes of the inputs) with different values. The serialized form
of a header that has passed every check is cached, and so are the serialized prefixes of responses. A request with
cached headers takes one dictionary look-up for each input, and its values stay bytes until they are joined with those
of its batch. Other requests are fully decoded and validated, which adds their headers to the cache.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod

from treadle import oip
from treadle.core.dtypes import numpy_dtype
from treadle.core.errors import InvalidInput, Violation
from treadle.inference.batching.batch import InferenceResult, InputLayout, RawInputs
from treadle.inference.models.models import RegisteredVersion
from treadle.plugins.tensor_spec import TensorSpec
from treadle.plugins.tensors import Array, Tensors
from treadle.rpc.codec.tensors import DTYPE_PARAMETER, decode_inputs, encode_outputs, raw_bytes, wire_dtype

MAX_CACHED_HEADERS = 4096
"""Size at which a cache is cleared. Headers usually differ only in their rows, so that only odd callers reach it."""
_TENSOR_PARAMETERS = frozenset({"binary_data", "binary_data_size", "content_type", DTYPE_PARAMETER})


def reject_unknown_parameters(parameters: Mapping[str, object], allowed: frozenset[str], where: str) -> None:
    """Raises InvalidInput for parameters that are not in `allowed`, because ignoring them would mislead the caller."""
    unknown = sorted(parameters.keys() - allowed)
    if unknown:
        raise InvalidInput(
            f"{where} has parameters that mean nothing here: {', '.join(unknown)[:200]}; leave them out",
            [Violation(f"parameters.{name[:64]}", f"unknown; {where} may have {sorted(allowed)}") for name in unknown],
        )


@dataclass(slots=True)
class OutputSelection:
    """The requested outputs, in the order of the request."""

    names: tuple[str, ...]
    row_bytes: tuple[int, ...] | None
    """Bytes of one row of each output; None unless all have a fixed size."""
    prefixes: dict[int, list[bytes]] = field(default_factory=dict)
    """By number of rows: the serialized response without raw contents, and the field prefix of each raw content."""


class InferCodec:
    """Encodes and decodes the messages of one model version."""

    def __init__(self, registered: RegisteredVersion, max_batch_rows: int) -> None:
        signature = registered.signature
        self.layout = InputLayout.of(signature)
        self._registered = registered
        self._max_batch_rows = max_batch_rows
        self._dtype_overrides = {
            spec.name: spec.dtype for spec in signature.inputs if wire_dtype(spec.dtype) != spec.dtype
        }
        """Inputs whose dtype the protocol cannot name: STRING, TIMESTAMP."""
        self._outputs = {spec.name: spec for spec in signature.outputs}
        self._headers: dict[bytes, tuple[int, int, int]] = {}
        """Position, rows and length of the raw contents, by the serialized header of an input."""
        self._selections: dict[tuple[bytes, ...], OutputSelection] = {}
        self._all_outputs = _selection(tuple(self._outputs), self._outputs)

    def match_cached_header(self, request: oip.ModelInferRequest) -> tuple[RawInputs, int] | None:
        """The raw inputs and their rows, if all headers of the request are cached; else None."""
        raws, pbs, rows = request.raw_input_contents[:], request.inputs, 0
        if not raws or len(raws) != len(pbs):
            return None
        for position, raw in enumerate(raws):
            found = self._headers.get(pbs[position].SerializeToString())
            if found is None or found[0] != position or found[2] != len(raw) or (found[1] != rows and position):
                return None
            rows = found[1]
        return raws, rows

    def decode_request(self, request: oip.ModelInferRequest) -> tuple[Tensors, int]:
        """The validated inputs as arrays, and their rows. InvalidInput if they do not match the signature."""
        for pb in request.inputs:
            if pb.parameters:
                reject_unknown_parameters(pb.parameters, _TENSOR_PARAMETERS, f"inputs[{pb.name}]")
        inputs = decode_inputs(request, self._dtype_overrides)
        rows = self._registered.signature.check_inputs(inputs)
        if self.layout is not None and rows <= self._max_batch_rows:
            self._cache_header(request, rows, self.layout)
        return inputs, rows

    def _cache_header(self, request: oip.ModelInferRequest, rows: int, layout: InputLayout) -> None:
        if not request.raw_input_contents or tuple(pb.name for pb in request.inputs) != layout.names:
            return
        if len(self._headers) >= MAX_CACHED_HEADERS:
            self._headers.clear()
        for position, pb in enumerate(request.inputs):
            self._headers[pb.SerializeToString()] = (position, rows, rows * layout.row_bytes[position])

    def select_outputs(self, requested: Sequence[oip.ModelInferRequest.InferRequestedOutputTensor]) -> OutputSelection:
        """The selection of a request; all outputs if it names none. InvalidInput for unknown or repeated outputs."""
        if not requested:
            return self._all_outputs
        key = tuple(output.SerializeToString() for output in requested)
        found = self._selections.get(key)
        if found is None:
            self._check_requested(requested)
            if len(self._selections) >= MAX_CACHED_HEADERS:
                self._selections.clear()
            found = self._selections[key] = _selection(tuple(output.name for output in requested), self._outputs)
        return found

    def _check_requested(self, requested: Sequence[oip.ModelInferRequest.InferRequestedOutputTensor]) -> None:
        seen: set[str] = set()
        for output in requested:
            place = f"outputs[{output.name}]"
            if output.name in seen or output.name not in self._outputs:
                what = "is asked for twice" if output.name in seen else f"is unknown; the model has {[*self._outputs]}"
                raise InvalidInput(f"{place} {what}", [Violation(place, "unknown or asked for twice")])
            seen.add(output.name)
            reject_unknown_parameters(output.parameters, _TENSOR_PARAMETERS, place)

    def encode_response(
        self, result: InferenceResult, selection: OutputSelection, *, raw: bool
    ) -> oip.ModelInferResponse:
        """The response with the selected outputs, as raw or typed contents; without the request's id."""
        if not raw or selection.row_bytes is None or result.merged_outputs is not None:
            return self._response(result.outputs, selection, raw=raw)
        rows, batch = result.rows, result.batch
        head, *field_prefixes = selection.prefixes.get(rows) or self._build_prefixes(result, selection)
        parts = [head]
        for name, size, field_prefix in zip(selection.names, selection.row_bytes, field_prefixes, strict=True):
            encoded = batch.encoded.get(name)
            if encoded is None:  # encoded once, for all responses of the batch
                encoded = batch.encoded[name] = raw_bytes(batch.outputs[name], name)
            parts += (field_prefix, encoded[result.first_row * size : (result.first_row + rows) * size])
        return oip.ModelInferResponse.FromString(b"".join(parts))

    def _build_prefixes(self, result: InferenceResult, selection: OutputSelection) -> list[bytes]:
        response = self._response(result.outputs, selection, raw=True)
        field_prefixes = [_raw_field_prefix(raw) for raw in response.raw_output_contents]
        del response.raw_output_contents[:]
        head = selection.prefixes[result.rows] = [response.SerializeToString(), *field_prefixes]
        return head

    def _response(
        self, outputs: Mapping[str, Array], selection: OutputSelection, *, raw: bool
    ) -> oip.ModelInferResponse:
        key = self._registered.key
        response = oip.ModelInferResponse(model_name=key.model, model_version=str(key.version))
        encode_outputs(response, {name: outputs[name] for name in selection.names}, raw=raw)
        return response


def _raw_field_prefix(raw: bytes) -> bytes:
    """The protobuf tag and length that precede raw contents of this length."""
    alone = oip.ModelInferResponse(raw_output_contents=[raw]).SerializeToString()
    return alone[: len(alone) - len(raw)]


def _selection(names: tuple[str, ...], outputs: Mapping[str, TensorSpec]) -> OutputSelection:
    sizes = [_row_bytes(outputs[name]) for name in names]
    return OutputSelection(names, tuple(size for size in sizes if size) if all(sizes) else None)


def _row_bytes(spec: TensorSpec) -> int:
    """Bytes of one row; 0 where rows have no fixed size."""
    if spec.dtype in {"STRING", "BYTES"} or -1 in spec.shape[1:]:
        return 0
    return numpy_dtype(spec.dtype).itemsize * prod(spec.shape[1:])
