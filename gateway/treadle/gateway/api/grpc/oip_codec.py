"""Inference requests and responses of the Open Inference Protocol to and from what the pipeline works on."""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from treadle import oip
from treadle.core.dtypes import dtype_name
from treadle.core.errors import InvalidInput
from treadle.core.model_ref import ModelRef
from treadle.gateway.pipeline.batch.prediction import PredictionRecord, PredictionResult
from treadle.gateway.pipeline.batch.request import TENSORS, ColumnHeader, PredictionRequest
from treadle.gateway.policy.deployments import ServedDeployment
from treadle.rpc.codec.protobuf_wire import field
from treadle.rpc.codec.tensors import decode_inputs, encode_outputs, raw_rows

Array = np.ndarray[Any, np.dtype[Any]]

_RESPONSE = oip.ModelInferResponse.DESCRIPTOR.fields_by_name
_MODEL_NAME, _ID, _RAW = (_RESPONSE[name].number for name in ("model_name", "id", "raw_output_contents"))
_STREAMED = oip.ModelStreamInferResponse.DESCRIPTOR.fields_by_name["infer_response"].number


def decode_request(pb: oip.ModelInferRequest, deployment: ServedDeployment, version: int | None) -> PredictionRequest:
    """Raises InvalidInput for tensors that can't be read or have no axis of rows."""
    tensors = decode_inputs(pb, _input_dtypes(deployment))
    return PredictionRequest(
        deployment.name,
        tuple([_header(name, array) for name, array in tensors.items()]),
        list(tensors.values()),
        {},
        tuple([output.name for output in pb.outputs]) if pb.outputs else (),
        pb.id,
        version=version,
    )


def _input_dtypes(deployment: ServedDeployment) -> Mapping[str, str]:
    version = deployment.versions.get(deployment.primary)
    return {} if version is None else version.input_dtypes


def _header(name: str, array: Array) -> ColumnHeader:
    if array.ndim == 0:
        raise InvalidInput.at(f"inputs[{name}]", "has no axis of rows")
    if array.dtype == object:
        text = bool(array.size) and isinstance(array.flat[0], str)
        return _cached_header(name, "STRING" if text else "BYTES", array.shape[1:])
    return _cached_header(name, dtype_name(array.dtype), array.shape[1:])


@lru_cache(maxsize=4096)
def _cached_header(name: str, dtype: str, row_shape: tuple[int, ...]) -> ColumnHeader:
    return ColumnHeader(TENSORS, name, dtype, row_shape)


def encode_streamed(response: bytes) -> bytes:
    """The `ModelStreamInferResponse` that holds a serialised response."""
    return field(_STREAMED, response)


def encode_response(prediction: PredictionResult, pb: oip.ModelInferRequest) -> bytes:
    """The `ModelInferResponse`, serialised: raw where the request was, under the name that was asked for."""
    encode_each = _encode_each_raw if pb.raw_input_contents else _encode_each_typed
    parts = [field(_MODEL_NAME, pb.model_name.encode()), prediction.record.encoded(encode_each)[prediction.index]]
    if pb.id:
        parts.append(field(_ID, pb.id.encode()))
    return b"".join(parts)


def _encode_each_raw(record: PredictionRecord) -> Sequence[bytes]:
    """Of each request of a record, the fields that follow from the record. Protobuf takes fields in any order."""
    if not record.has_one_row_each:
        return _encode_each(record, raw=True)
    # Rows of one request each differ in their contents alone.
    template = _outputs(record, slice(0, 1), raw=True)
    del template.raw_output_contents[:]
    common = _common(record.ref, record.served_by, record.degraded_reason) + template.SerializeToString()
    contents = [raw_rows(column.values, column.name) for column in record.outputs]
    return [
        b"".join([common, _ids([prediction_id]), *[field(_RAW, each) for each in row]])
        for prediction_id, *row in zip(record.prediction_ids, *contents, strict=True)
    ]


def _encode_each_typed(record: PredictionRecord) -> Sequence[bytes]:
    return _encode_each(record, raw=False)


def _encode_each(record: PredictionRecord, *, raw: bool) -> Sequence[bytes]:
    common = _common(record.ref, record.served_by, record.degraded_reason)
    return [
        common + _ids(record.prediction_ids[rows]) + _outputs(record, rows, raw=raw).SerializeToString()
        for rows in record.row_ranges
    ]


def _outputs(record: PredictionRecord, rows: slice, *, raw: bool) -> oip.ModelInferResponse:
    response = oip.ModelInferResponse()
    encode_outputs(response, {column.name: column.values[rows] for column in record.outputs}, raw=raw)
    return response


@lru_cache(maxsize=1024)
def _common(ref: ModelRef, served_by: str, degraded_reason: str) -> bytes:
    response = oip.ModelInferResponse(model_version=str(ref.version))
    response.parameters["treadle_served_by"].string_param = served_by
    if degraded_reason:
        response.parameters["treadle_degraded_reason"].string_param = degraded_reason
    return response.SerializeToString()


def _ids(prediction_ids: Sequence[str]) -> bytes:
    """The parameter `treadle_prediction_ids`; its text is as long for each number of ids."""
    head = _ids_head(len(prediction_ids))
    return head + ",".join(prediction_ids).encode()


@lru_cache(maxsize=1024)
def _ids_head(count: int) -> bytes:
    response = oip.ModelInferResponse()
    text = ",".join(["0" * _ID_LENGTH] * count)
    response.parameters["treadle_prediction_ids"].string_param = text
    encoded: bytes = response.SerializeToString()
    return encoded.removesuffix(text.encode())


_ID_LENGTH = 36
"""Characters of a prediction id, a UUID."""
