"""Encoding of numpy arrays as tensors of the Open Inference Protocol, and decoding, for servers and clients.

Raw tensors become read-only views of the message's bytes. STRING and TIMESTAMP have no OIP datatype: STRING is sent
as BYTES (UTF-8), TIMESTAMP as INT64 (microseconds). A server restores them from the model's signature
(`dtypes`), a client from the parameter `treadle_dtype` that `encode_outputs` sets on such outputs.

A malformed message raises InvalidInput, which names the tensor, never a value.
"""

from collections.abc import Iterable, Mapping, Sequence
from math import prod
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from treadle import oip
from treadle.core.dtypes import NUMPY_DTYPES
from treadle.core.errors import InvalidInput

Array = NDArray[Any]
DTYPE_PARAMETER = "treadle_dtype"
MAX_TENSORS = 256
MAX_RANK = 32

# Data types that OIP has under the same name: all but objects and timestamps.
_SAME_NAME_DTYPES = {name: dtype for name, dtype in NUMPY_DTYPES.items() if dtype.kind not in "OM"}
_NAMES = {dtype: name for name, dtype in _SAME_NAME_DTYPES.items()}
# The field of typed contents for each datatype. FP16 has none: it is always sent raw.
_CONTENTS_FIELD: Mapping[str, str] = MappingProxyType(
    {
        "BOOL": "bool_contents",
        "INT8": "int_contents",
        "INT16": "int_contents",
        "INT32": "int_contents",
        "INT64": "int64_contents",
        "UINT8": "uint_contents",
        "UINT16": "uint_contents",
        "UINT32": "uint_contents",
        "UINT64": "uint64_contents",
        "FP32": "fp32_contents",
        "FP64": "fp64_contents",
        "BYTES": "bytes_contents",
    }
)
_WIRE_NAMES = MappingProxyType({"STRING": "BYTES", "TIMESTAMP": "INT64"})
_Tensor = oip.ModelInferRequest.InferInputTensor | oip.ModelInferResponse.InferOutputTensor


def wire_dtype(dtype: str) -> str:
    """The OIP datatype that a Treadle data type is sent as: "BYTES" for "STRING"."""
    return _WIRE_NAMES.get(dtype, dtype)


def decode_inputs(request: oip.ModelInferRequest, dtypes: Mapping[str, str] = MappingProxyType({})) -> dict[str, Array]:
    """The inputs by name; raw ones are not copied. `dtypes` says which BYTES are STRING and which INT64 TIMESTAMP."""
    tensors = _decode(request.inputs, request.raw_input_contents, "inputs")
    for name, dtype in dtypes.items():
        if dtype in _WIRE_NAMES and name in tensors:
            tensors[name] = _restore(tensors[name], dtype, f"inputs[{name}]")
    return tensors


def decode_outputs(response: oip.ModelInferResponse) -> dict[str, Array]:
    """The outputs by name; raw ones are not copied."""
    tensors = _decode(response.outputs, response.raw_output_contents, "outputs")
    for pb in response.outputs:
        if pb.parameters and DTYPE_PARAMETER in pb.parameters:
            dtype = pb.parameters[DTYPE_PARAMETER].string_param
            tensors[pb.name] = _restore(tensors[pb.name], dtype, f"outputs[{pb.name}]")
    return tensors


def encode_inputs(request: oip.ModelInferRequest, arrays: Mapping[str, Array], *, raw: bool = True) -> None:
    """Adds `arrays` to the request as inputs, in their order. Object arrays hold `str` or `bytes`."""
    _encode(arrays, request.inputs, request.raw_input_contents, raw=raw)


def encode_outputs(response: oip.ModelInferResponse, outputs: Mapping[str, Array], *, raw: bool) -> None:
    """Adds `outputs` to the response, raw or typed. If one is FP16, which has no typed form, all are sent raw."""
    _encode(outputs, response.outputs, response.raw_output_contents, raw=raw, restorable=True)


def raw_bytes(array: Array, name: str) -> bytes:
    """The raw contents of `array`. InvalidInput, with the `name` of the tensor, where it has no OIP datatype."""
    return _to_raw(_to_wire(array, name)[0])


def raw_rows(array: Array, name: str) -> Sequence[bytes]:
    """The raw contents of each row of `array` as a tensor of one row. InvalidInput as in `raw_bytes`."""
    wire, _, _ = _to_wire(array, name)
    if wire.dtype == object:
        return [_to_raw(wire[row : row + 1]) for row in range(len(wire))]
    data = _to_raw(wire)
    size = len(data) // len(wire)
    return [data[start : start + size] for start in range(0, len(data), size)] if size else [b""] * len(wire)


def _encode(arrays: Mapping[str, Array], pbs: Any, raws: Any, *, raw: bool, restorable: bool = False) -> None:
    """Adds `arrays` to the tensors `pbs`. `restorable` adds the Treadle dtype where the OIP datatype is another."""
    raw = raw or _needs_raw(arrays.values())
    for name, array in arrays.items():
        wire, datatype, restored = _to_wire(array, name)
        pb = pbs.add(name=name, datatype=datatype, shape=array.shape)
        if restorable and restored:
            pb.parameters[DTYPE_PARAMETER].string_param = restored
        if raw:
            raws.append(_to_raw(wire))
        else:
            _add_contents(pb.contents, datatype, wire)


def _decode(pbs: Sequence[_Tensor], raws: Sequence[bytes], where: str) -> dict[str, Array]:
    if len(pbs) > MAX_TENSORS:
        raise InvalidInput.at(where, f"has {len(pbs)} tensors; {MAX_TENSORS} is the limit")
    if raws and len(raws) != len(pbs):
        raise InvalidInput.at(
            f"raw_{where[:-1]}_contents", f"has {len(raws)} entries for {len(pbs)} tensors; send one for each, in order"
        )
    tensors: dict[str, Array] = {}
    for position, pb in enumerate(pbs):
        name = pb.name
        place = f"{where}[{name}]" if name else f"{where}[{position}]"
        if not name or name in tensors:
            raise InvalidInput.at(place, "appears twice" if name else "has no name")
        shape = tuple(pb.shape)
        if raws:
            if pb.HasField("contents") and pb.contents.ByteSize():
                raise InvalidInput.at(place, "has both contents and raw contents; send one of the two for all tensors")
            tensors[name] = _from_raw(raws[position], pb.datatype, shape, place)
        else:
            tensors[name] = _from_contents(pb.contents, pb.datatype, shape, place)
    return tensors


def _count(shape: tuple[int, ...], itemsize: int, place: str) -> int:
    """The number of elements of `shape`, computed with Python's unbounded integers, which cannot overflow.

    InvalidInput for negative sizes and shapes that no memory can hold.
    """
    if shape and min(shape) < 0:
        raise InvalidInput.at(place, f"has a negative size in its shape {list(shape)}")
    if len(shape) > MAX_RANK:
        raise InvalidInput.at(place, f"has {len(shape)} axes; {MAX_RANK} is the limit")
    if prod(size or 1 for size in shape) * itemsize >= 1 << 62:
        raise InvalidInput.at(place, f"has the impossible shape {list(shape)}")
    return prod(shape)


def _from_raw(raw: bytes, datatype: str, shape: tuple[int, ...], place: str) -> Array:
    if datatype == "BYTES":
        return _objects(_split_bytes(raw, _count(shape, 4, place), place), shape)
    dtype = _SAME_NAME_DTYPES.get(datatype)
    if dtype is None:
        raise _unknown_datatype(datatype, place)
    wanted = _count(shape, dtype.itemsize, place) * dtype.itemsize
    if len(raw) != wanted:
        raise InvalidInput.at(place, f"has {len(raw)} raw bytes; shape {list(shape)} of {datatype} is {wanted}")
    if datatype == "BOOL" and raw and np.frombuffer(raw, np.uint8).max() > 1:
        raise InvalidInput.at(place, "has raw BOOL bytes other than 0 and 1")
    return np.frombuffer(raw, dtype).reshape(shape)


def _split_bytes(raw: bytes, count: int, place: str) -> list[bytes]:
    """The elements of a raw BYTES tensor, each preceded by its length in four little-endian bytes."""
    if count * 4 > len(raw):
        raise InvalidInput.at(place, f"has {len(raw)} raw bytes, too few for {count} BYTES elements with their lengths")
    elements: list[bytes] = []
    offset, end = 0, len(raw)
    for _ in range(count):
        start = offset + 4
        offset = start + int.from_bytes(raw[offset:start], "little")
        if start > end or offset > end:
            raise InvalidInput.at(place, f"ends inside element {len(elements)} of {count}")
        elements.append(raw[start:offset])
    if offset != end:
        raise InvalidInput.at(place, f"has {end - offset} raw bytes after its {count} BYTES elements")
    return elements


def _from_contents(contents: oip.InferTensorContents, datatype: str, shape: tuple[int, ...], place: str) -> Array:
    field = _CONTENTS_FIELD.get(datatype)
    if field is None:
        if datatype == "FP16":
            raise InvalidInput.at(place, "is FP16, which has no typed form; send it as raw contents")
        raise _unknown_datatype(datatype, place)
    for other, _ in contents.ListFields():
        if other.name != field:
            raise InvalidInput.at(place, f"has {other.name}; {datatype} stands in {field}")
    values = getattr(contents, field)
    wanted = _count(shape, 1, place)
    if len(values) != wanted:
        raise InvalidInput.at(place, f"has {len(values)} values; shape {list(shape)} is {wanted}")
    if datatype == "BYTES":
        return _objects(list(values), shape)
    dtype = _SAME_NAME_DTYPES[datatype]
    if dtype.itemsize < 4 and dtype.kind in "iu" and values:
        limits = np.iinfo(dtype)
        if min(values) < limits.min or max(values) > limits.max:
            raise InvalidInput.at(place, f"holds a value outside the range of {datatype}")
    return np.fromiter(values, dtype, wanted).reshape(shape)


def _restore(array: Array, dtype: str, place: str) -> Array:
    """STRING from BYTES, TIMESTAMP from INT64. Other pairs are returned unchanged: the signature check refuses them."""
    if dtype == "TIMESTAMP" and array.dtype == _SAME_NAME_DTYPES["INT64"]:
        return array.view("datetime64[us]")
    if dtype != "STRING" or array.dtype != object:
        return array
    texts: list[str] = []
    for position, value in enumerate(array.flat):
        try:
            texts.append(value.decode("utf-8"))
        except UnicodeDecodeError:
            raise InvalidInput.at(place, f"is text, and element {position} is not valid UTF-8") from None
    return _objects(texts, array.shape)


def _to_wire(array: Array, name: str) -> tuple[Array, str, str]:
    """The array as it is sent, its OIP datatype, and "STRING" or "TIMESTAMP" where OIP has no such type, else ""."""
    kind = array.dtype.kind
    if kind == "M":
        return array.astype("datetime64[us]").view("<i8"), "INT64", "TIMESTAMP"
    if kind in "OUST":
        elements = array.ravel().tolist()
        if all(isinstance(element, str) for element in elements) and elements:
            return _objects([element.encode() for element in elements], array.shape), "BYTES", "STRING"
        if all(isinstance(element, bytes) for element in elements):
            return _objects(elements, array.shape), "BYTES", ""
        raise InvalidInput.at(f"tensor {name!r}", "holds neither str alone nor bytes alone")
    dtype = array.dtype.newbyteorder("<")
    datatype = _NAMES.get(dtype)
    if datatype is None:
        raise InvalidInput.at(f"tensor {name!r}", f"is numpy's {array.dtype}, which has no OIP datatype")
    return array, datatype, ""


def _to_raw(wire: Array) -> bytes:
    if wire.dtype == object:
        return b"".join(len(element).to_bytes(4, "little") + element for element in wire.flat)
    return wire.astype(wire.dtype.newbyteorder("<"), copy=False).tobytes()


def _add_contents(contents: oip.InferTensorContents, datatype: str, wire: Array) -> None:
    getattr(contents, _CONTENTS_FIELD[datatype]).extend(wire.ravel().tolist())


def _needs_raw(arrays: Iterable[Array]) -> bool:
    return any(array.dtype == _SAME_NAME_DTYPES["FP16"] for array in arrays)


def _objects(elements: Sequence[object], shape: tuple[int, ...]) -> Array:
    array = np.empty(len(elements), dtype=object)
    array[:] = elements
    return array.reshape(shape)


def _unknown_datatype(datatype: str, place: str) -> InvalidInput:
    if datatype == "BF16":
        return InvalidInput.at(place, "is BF16, which is not supported; send FP32")
    known = ", ".join([*_SAME_NAME_DTYPES, "BYTES"])
    return InvalidInput.at(place, f"has the unknown datatype {datatype[:32]!r}; use one of {known}")
