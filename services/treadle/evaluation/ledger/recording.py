"""Validation of recorded batches, and their conversion to entries of the ledger.

An invalid batch raises InvalidInput, which names the batch (`where`) and the field.
"""

import math
from collections.abc import Sequence

from treadle.core.errors import InvalidInput
from treadle.evaluation.ledger.ledger import Label, RecordedBatch
from treadle.rpc.codec.column_check import check_columns
from treadle.rpc.codec.columns import decode
from treadle.v1 import evaluation_pb2, types_pb2

MAXIMUM_ID_CHARACTERS = 200


def predictions_of(batch: evaluation_pb2.PredictionBatch, where: str) -> list[RecordedBatch]:
    """A checked batch of predictions, serialized as it was sent; a list of one."""
    ids = tuple(batch.prediction_ids)
    rows = len(ids)
    _check_ids(ids, where)
    if not batch.deployment:
        raise InvalidInput.at(f"{where}.deployment", "must be set")
    if batch.at_micros <= 0:
        raise InvalidInput.at(f"{where}.at_micros", "must be set: microseconds since 1970")
    if not math.isfinite(batch.latency_seconds) or batch.latency_seconds < 0:
        raise InvalidInput.at(f"{where}.latency_seconds", "must be 0 or more")
    _check_requests(batch, where, rows)
    if not rows:
        raise InvalidInput.at(f"{where}.prediction_ids", "must hold one id a row; there is none")
    check_columns(batch.entities, f"{where}.entities", rows)
    check_columns(batch.outputs, f"{where}.outputs", rows)
    _check_features(batch, where, rows)
    scalars = (
        batch.at_micros, batch.deployment, batch.model.model, batch.model.version, batch.served_by,
        batch.degraded_reason, batch.trace_id, batch.tenant, batch.latency_seconds, batch.shadow,
    )  # fmt: skip
    outputs = evaluation_pb2.PredictionBatch(outputs=batch.outputs).SerializeToString()
    return [RecordedBatch(ids, tuple(range(rows)), rows, scalars, outputs, batch.SerializeToString())]


def labels_of(batch: evaluation_pb2.LabelBatch, where: str) -> list[Label]:
    """The labels of a checked batch, one for each row."""
    rows = len(batch.prediction_ids)
    _check_ids(batch.prediction_ids, where)
    if len(batch.at_micros) != rows:
        raise InvalidInput.at(f"{where}.at_micros", f"has {len(batch.at_micros)} elements, {rows} are wanted")
    if any(at <= 0 for at in batch.at_micros):
        raise InvalidInput.at(f"{where}.at_micros", "must all be set: microseconds since 1970")
    named = types_pb2.Column()
    named.CopyFrom(batch.labels)
    named.name = batch.labels.name or "labels"
    column = decode(named, f"{where}.labels")
    if column.rows != rows or column.values.ndim != 1:
        raise InvalidInput.at(f"{where}.labels", f"must hold {rows} single numbers")
    if column.values.dtype.kind not in "biuf" or column.nulls is not None:
        raise InvalidInput.at(f"{where}.labels", "must be numbers without nulls")
    values = column.values.astype(float).tolist()
    if not all(map(math.isfinite, values)):
        raise InvalidInput.at(f"{where}.labels", "must be finite")
    return [Label(*row) for row in zip(batch.prediction_ids, values, batch.at_micros, strict=True)]


def _check_requests(batch: evaluation_pb2.PredictionBatch, where: str, rows: int) -> None:
    """Checks the trace ids and latencies of batches that hold the rows of several requests."""
    for name in ("trace_ids", "latencies_seconds"):
        if (count := len(getattr(batch, name))) not in (0, rows):
            raise InvalidInput.at(f"{where}.{name}", f"has {count} elements, {rows} or none are wanted")
    if not all(math.isfinite(each) and each >= 0 for each in batch.latencies_seconds):
        raise InvalidInput.at(f"{where}.latencies_seconds", "must be 0 or more")


def _check_features(batch: evaluation_pb2.PredictionBatch, where: str, rows: int) -> None:
    """Checks the feature columns. A feature whose values were not recorded has only statuses and ages."""
    columns = []
    for feature in batch.features:
        columns.append(feature.column)
        if len(feature.statuses) != rows or len(feature.ages_seconds) != rows:
            raise InvalidInput.at(f"{where}.features[{feature.column.name}]", f"needs {rows} statuses and {rows} ages")
    check_columns(columns, f"{where}.features", rows, may_be_empty=True)


def _check_ids(ids: Sequence[str], where: str) -> None:
    for index, identity in enumerate(ids):
        if not 0 < len(identity) <= MAXIMUM_ID_CHARACTERS or "\0" in identity:
            raise InvalidInput.at(
                f"{where}.prediction_ids[{index}]", f"must be a text of 1 to {MAXIMUM_ID_CHARACTERS} characters"
            )
