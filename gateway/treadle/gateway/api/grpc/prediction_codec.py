"""`treadle.v1` messages of a prediction to and from what the pipeline works on."""

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

from treadle.core.model_ref import ModelRef
from treadle.gateway.pipeline.batch.feature_batch import FeatureBatch
from treadle.gateway.pipeline.batch.prediction import PredictionRecord, PredictionResult, provenance_of
from treadle.gateway.pipeline.batch.request import (
    CONTEXT,
    ENTITIES,
    TENSORS,
    ColumnHeader,
    PredictionRequest,
    RequestColumns,
)
from treadle.gateway.pipeline.stages.routing import parse_version
from treadle.rpc.codec.columns import VALUE_FIELDS, decode, encode_column, encode_each_row, from_proto
from treadle.rpc.codec.feature_columns import encode_feature
from treadle.rpc.codec.protobuf_wire import field
from treadle.v1 import types_pb2
from treadle.v1.prediction_pb2 import FeatureProvenance, PredictRequest, PredictResponse

_OUTPUTS = PredictResponse.OUTPUTS_FIELD_NUMBER
_FEATURES = PredictResponse.FEATURES_FIELD_NUMBER
_PROVENANCE = PredictResponse.PROVENANCE_FIELD_NUMBER
_PREDICTION_IDS = PredictResponse.PREDICTION_IDS_FIELD_NUMBER
_TRACE_ID = PredictResponse.TRACE_ID_FIELD_NUMBER
_REQUEST_ID = PredictResponse.REQUEST_ID_FIELD_NUMBER


def decode_request(pb: PredictRequest, metadata: Mapping[str, str]) -> PredictionRequest:
    """Raises InvalidInput for columns that can't be read and a malformed version in the metadata."""
    columns = RequestColumns()
    for part, pbs in ((ENTITIES, pb.entities), (CONTEXT, pb.context), (TENSORS, pb.tensors)):
        for column in pbs:
            _decode_column(part, column, columns)
    return PredictionRequest(
        pb.deployment,
        tuple(columns.schema),
        columns.values,
        columns.nulls,
        tuple(pb.outputs),
        pb.request_id,
        pb.sticky_key,
        pb.return_features,
        parse_version(metadata),
        pb.now_micros,
    )


def _decode_column(part: str, pb: types_pb2.Column, columns: RequestColumns) -> None:
    """Plain values stay the Python values that they are, until they are joined with those of other requests."""
    kind = pb.WhichOneof("values")
    header = None if kind is None else _plain_header(part, pb.name, kind, pb.dtype)
    if header is not None and not pb.row_shape and not pb.null_rows:
        columns.add_values(header, getattr(pb, kind).values)  # type: ignore[arg-type]  # there is a header only for a kind
    else:
        columns.add(part, decode(pb, part))


@lru_cache(maxsize=4096)
def _plain_header(part: str, name: str, kind: str, dtype: int) -> ColumnHeader | None:
    """The header of a column whose values need no conversion; None for others, and for what is malformed."""
    if kind not in VALUE_FIELDS or not name:
        return None
    default, _ = VALUE_FIELDS[kind]
    return ColumnHeader(part, name, default) if not dtype or dtype == _NUMBERS[default] else None


_NUMBERS = {from_proto(number): number for number in types_pb2.DataType.values() if number}


def encode_response(prediction: PredictionResult, request: PredictionRequest, trace_id: str) -> bytes:
    """The `PredictResponse`, serialised."""
    common = prediction.record.encoded(_encode_each)[prediction.index]
    parts = [common, *_own_fields(request.request_id, trace_id)]
    features = prediction.features if request.return_features else None
    if features is not None:
        parts += _encode_features(features)
    return b"".join(parts)


def _own_fields(request_id: str, trace_id: str) -> Iterator[bytes]:
    if request_id:
        yield field(_REQUEST_ID, request_id.encode())
    if trace_id:
        yield field(_TRACE_ID, trace_id.encode())


def _encode_features(features: FeatureBatch) -> Iterator[bytes]:
    for each in features.features.values():
        yield field(_FEATURES, encode_feature(each.column, each.statuses, each.ages_seconds))


def _encode_each(record: PredictionRecord) -> Sequence[bytes]:
    """Of each request of a record, the fields that follow from the record. Protobuf takes fields in any order."""
    common = _common(record.ref, record.served_by, record.degraded_reason)
    ids = [field(_PREDICTION_IDS, each.encode()) for each in record.prediction_ids]
    ranges = record.row_ranges
    columns: list[Sequence[bytes]] = [_each_output(column, record, ranges) for column in record.outputs]
    if record.features is not None:
        columns.append(_each_provenance(record.features, ranges))
    if record.has_one_row_each:
        return [b"".join([common, *parts]) for parts in zip(ids, *columns, strict=True)]
    return [
        b"".join([common, *ids[rows], *parts]) for rows, parts in zip(ranges, zip(*columns, strict=True), strict=True)
    ]


def _each_output(column: Any, record: PredictionRecord, ranges: Sequence[slice]) -> Sequence[bytes]:
    if record.has_one_row_each:
        return [field(_OUTPUTS, row) for row in encode_each_row(column)]
    return [field(_OUTPUTS, encode_column(column.take(rows))) for rows in ranges]


def _each_provenance(features: FeatureBatch, ranges: Sequence[slice]) -> Sequence[bytes]:
    if features.imperfect or len(ranges) != features.rows:
        return [field(_PROVENANCE, _provenance(features, rows)) for rows in ranges]
    ages = features.oldest_ages.astype("<f8", copy=False).tobytes()
    head = field(_PROVENANCE, FeatureProvenance(oldest_age_seconds=1.0).SerializeToString())[:-8]
    return [head + ages[start : start + 8] for start in range(0, len(ages), 8)]


def _provenance(features: FeatureBatch, rows: slice) -> bytes:
    found = provenance_of(features, rows)
    return FeatureProvenance(
        oldest_age_seconds=found.oldest_age_seconds, stale=found.stale, missing=found.missing, null=found.null
    ).SerializeToString()


@lru_cache(maxsize=1024)
def _common(ref: ModelRef, served_by: str, degraded_reason: str) -> bytes:
    model = types_pb2.ModelRef(model=ref.model, version=ref.version)
    return PredictResponse(model=model, served_by=served_by, degraded_reason=degraded_reason).SerializeToString()
