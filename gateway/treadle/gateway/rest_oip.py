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
from treadle.gateway.chain import Chain
from treadle.gateway.json_codec import finite_or_none
from treadle.gateway.oip_servicer import OipServicer
from treadle.rpc.columns import dtype_name
from treadle.rpc.errors import InvalidInput
from treadle.rpc.tensors import decode_outputs, encode_inputs

_KINDS = {"BOOL": "b", "FP16": "iuf", "FP32": "iuf", "FP64": "iuf"}
_DTYPES = (*(f"{kind}{bits}" for kind in ("INT", "UINT") for bits in (8, 16, 32, 64)), *_KINDS, "BYTES")


class OipRest:
    """Endpoints over the same servicer that answers over gRPC."""

    def __init__(self, chain: Chain, inference: oip.GRPCInferenceServiceStub) -> None:
        self._servicer = OipServicer(chain, inference, 1)
        self._inference = inference

    async def live(self, request: Request) -> Response:
        """Whether the process lives."""
        return _reply({"live": True})

    async def ready(self, request: Request) -> Response:
        """Whether inference is ready."""
        found = await self._inference.ServerReady(oip.ServerReadyRequest())
        return _reply({"ready": found.ready}, 200 if found.ready else 503)

    async def server(self, request: Request) -> Response:
        """Name, version, extensions."""
        found = await self._inference.ServerMetadata(oip.ServerMetadataRequest())
        return _reply({"name": found.name, "version": found.version, "extensions": list(found.extensions)})

    async def model_ready(self, request: Request) -> Response:
        """Whether the model, or the deployment's primary version, is ready."""
        name, version = _named(request)
        found = await self._servicer.model_ready(oip.ModelReadyRequest(name=name, version=version))
        return _reply({"name": name, "ready": found.ready}, 200 if found.ready else 503)

    async def metadata(self, request: Request) -> Response:
        """Inputs and outputs of the model, or of the deployment's primary version."""
        name, version = _named(request)
        found = await self._servicer.model_metadata(oip.ModelMetadataRequest(name=name, version=version))
        return _reply(
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
        name, version = _named(request)
        pb = oip.ModelInferRequest(model_name=name, model_version=version, id=_text(body, "id"))
        _refuse_unknown(body, {"id", "parameters", "inputs", "outputs"}, "the body")
        encode_inputs(pb, dict(_input(item, position) for position, item in enumerate(_list(body, "inputs"))))
        for position, item in enumerate(_list(body, "outputs") if "outputs" in body else []):
            if not isinstance(item, dict):
                raise InvalidInput.at(f"outputs[{position}]", "must be an object")
            pb.outputs.add(name=_text(item, "name"))
        response = await self._servicer.infer(pb)
        arrays = decode_outputs(response)
        return {
            "model_name": response.model_name,
            "model_version": response.model_version,
            "id": response.id,
            "parameters": {key: value.string_param for key, value in response.parameters.items() if value.string_param},
            "outputs": [_output(name, array) for name, array in arrays.items()],
        }


def _reply(content: Any, status: int = 200) -> Response:
    from treadle.gateway.rest import reply

    return reply(content, status)


def _named(request: Request) -> tuple[str, str]:
    return request.path_params["model"], request.path_params.get("version", "")


def _tensor(pb: Any) -> dict[str, Any]:
    return {"name": pb.name, "datatype": pb.datatype, "shape": list(pb.shape)}


def _input(item: Any, position: int) -> tuple[str, "np.ndarray[Any, np.dtype[Any]]"]:
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


def _array(where: str, datatype: str, shape: list[int], data: list[Any]) -> "np.ndarray[Any, np.dtype[Any]]":
    try:
        if datatype == "BYTES":
            array = np.array(data, dtype=object)
            if not all(isinstance(item, str) for item in array.flat):
                raise InvalidInput.at(f"{where}.data", "must hold strings")
        else:
            array = np.array(data)
            if array.size and array.dtype.kind not in _KINDS.get(datatype, "iu"):
                raise InvalidInput.at(f"{where}.data", f"must hold {datatype} values")
            array = _narrow(array, datatype)
        return array.reshape(shape)
    except (ValueError, OverflowError):
        raise InvalidInput.at(f"{where}.data", f"does not fill the shape {shape} with {datatype} values") from None


def _narrow(array: "np.ndarray[Any, np.dtype[Any]]", datatype: str) -> "np.ndarray[Any, np.dtype[Any]]":
    from treadle.rpc.columns import numpy_dtype

    with np.errstate(over="ignore"):
        cast = array.astype(numpy_dtype(datatype))
    if cast.dtype.kind == "f":
        if np.isinf(cast).any():
            raise OverflowError
    elif not np.array_equal(cast, array):
        raise OverflowError
    return cast


def _output(name: str, array: "np.ndarray[Any, np.dtype[Any]]") -> dict[str, Any]:
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
