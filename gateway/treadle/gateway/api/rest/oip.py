"""The Open Inference Protocol's REST form: health, metadata, and infer with nested or flat data.

A name may be a deployment's; else it is a model of the inference service. BYTES are JSON strings (UTF-8), as the
protocol's JSON form has them.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from starlette.requests import Request
from starlette.responses import Response

from treadle import oip
from treadle.core.dtypes import dtype_name
from treadle.core.errors import InvalidInput
from treadle.gateway.api.grpc.oip_servicer import OipServicer
from treadle.gateway.api.rest.json_codec import Array, cast_exactly, finite_or_none
from treadle.gateway.api.rest.reply import reply
from treadle.rpc.codec.tensors import decode_outputs, encode_inputs

_INTEGERS = tuple(f"{kind}{bits}" for kind in ("INT", "UINT") for bits in (8, 16, 32, 64))
_DTYPES = (*_INTEGERS, "BOOL", "FP16", "FP32", "FP64", "BYTES")


class OipRest:
    """Endpoints over the same servicer that answers over gRPC."""

    def __init__(self, servicer: OipServicer) -> None:
        self._servicer = servicer

    async def live(self, request: Request) -> Response:
        """Whether the process lives."""
        return reply({"live": True})

    async def ready(self, request: Request) -> Response:
        """Whether inference is ready."""
        found = await self._servicer.inference.ServerReady(oip.ServerReadyRequest())
        return reply({"ready": found.ready}, 200 if found.ready else 503)

    async def server(self, request: Request) -> Response:
        """Name, version, extensions."""
        found = await self._servicer.inference.ServerMetadata(oip.ServerMetadataRequest())
        return reply({"name": found.name, "version": found.version, "extensions": list(found.extensions)})

    async def model_ready(self, request: Request) -> Response:
        """Whether the model, or the deployment's primary version, is ready."""
        name, version = _model_and_version(request)
        found = await self._servicer.model_ready(oip.ModelReadyRequest(name=name, version=version))
        return reply({"name": name, "ready": found.ready}, 200 if found.ready else 503)

    async def metadata(self, request: Request) -> Response:
        """Inputs and outputs of the model, or of the deployment's primary version."""
        name, version = _model_and_version(request)
        found = await self._servicer.model_metadata(oip.ModelMetadataRequest(name=name, version=version))
        return reply(
            {
                "name": found.name,
                "versions": list(found.versions),
                "platform": found.platform,
                "inputs": [_tensor(pb) for pb in found.inputs],
                "outputs": [_tensor(pb) for pb in found.outputs],
            }
        )

    async def infer(self, request: Request, body: Mapping[str, Any]) -> dict[str, Any]:
        """The protocol's answer to its request."""
        name, version = _model_and_version(request)
        pb = oip.ModelInferRequest(model_name=name, model_version=version, id=_text(body, "id"))
        _refuse_unknown(body, {"id", "parameters", "inputs", "outputs"}, "the body")
        encode_inputs(pb, dict(_input(item, position) for position, item in enumerate(_list(body, "inputs"))))
        for position, item in enumerate(_list(body, "outputs") if "outputs" in body else []):
            if not isinstance(item, dict):
                raise InvalidInput.at(f"outputs[{position}]", "must be an object")
            pb.outputs.add(name=_text(item, "name"))
        response = oip.ModelInferResponse.FromString(await self._servicer.infer(pb))
        arrays = decode_outputs(response)
        return {
            "model_name": response.model_name,
            "model_version": response.model_version,
            "id": response.id,
            "parameters": {key: value.string_param for key, value in response.parameters.items() if value.string_param},
            "outputs": [_output(name, array) for name, array in arrays.items()],
        }


def _model_and_version(request: Request) -> tuple[str, str]:
    return request.path_params["model"], request.path_params.get("version", "")


def _tensor(pb: Any) -> dict[str, Any]:
    return {"name": pb.name, "datatype": pb.datatype, "shape": list(pb.shape)}


def _input(item: Any, position: int) -> tuple[str, Array]:
    where = f"inputs[{position}]"
    if not isinstance(item, dict):
        raise InvalidInput.at(where, "must be an object")
    _refuse_unknown(item, {"name", "shape", "datatype", "parameters", "data"}, where)
    name, datatype, shape, data = (
        _text(item, "name"),
        _text(item, "datatype"),
        _list(item, "shape"),
        _list(item, "data"),
    )
    if datatype not in _DTYPES:
        raise InvalidInput.at(f"{where}.datatype", f"must be one of {', '.join(_DTYPES)}")
    if not all(type(size) is int and size >= 0 for size in shape):
        raise InvalidInput.at(f"{where}.shape", "must be a list of sizes")
    return name, _array(where, datatype, shape, data)


def _array(where: str, datatype: str, shape: list[int], data: list[Any]) -> Array:
    try:
        if datatype == "BYTES":
            array = np.array(data, dtype=object)
            if not all(isinstance(item, str) for item in array.flat):
                raise InvalidInput.at(f"{where}.data", "must hold strings")
        else:
            array = np.array(data)
            cast = cast_exactly(f"{where}.data", array, datatype)
            if cast is None:
                raise OverflowError
            array = cast
        return array.reshape(shape)
    except (ValueError, OverflowError):
        raise InvalidInput.at(f"{where}.data", f"does not fill the shape {shape} with {datatype} values") from None


def _output(name: str, array: Array) -> dict[str, Any]:
    if array.dtype == object:
        data: list[Any] = [item if isinstance(item, str) else item.decode("utf-8", "replace") for item in array.flat]
        datatype = "BYTES"
    elif array.dtype.kind == "M":
        data, datatype = array.view(np.int64).ravel().tolist(), "INT64"
    else:
        flat = array.ravel()
        data = finite_or_none(flat) if flat.dtype.kind == "f" else flat.tolist()
        datatype = dtype_name(array.dtype)
    return {"name": name, "datatype": datatype, "shape": list(array.shape), "data": data}


def _text(body: Mapping[str, Any], field: str) -> str:
    value = body.get(field, "")
    if not isinstance(value, str):
        raise InvalidInput.at(field, "must be a string")
    return value


def _list(body: Mapping[str, Any], field: str) -> list[Any]:
    value = body.get(field)
    if not isinstance(value, list):
        raise InvalidInput.at(field, "must be a list")
    return value


def _refuse_unknown(body: Mapping[str, Any], known: set[str], where: str) -> None:
    unknown = sorted(body.keys() - known)
    if unknown:
        raise InvalidInput.at(where, f"has unknown fields: {', '.join(unknown)}")
