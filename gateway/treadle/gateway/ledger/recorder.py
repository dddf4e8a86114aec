"""Answered requests as the ledger's records of them, written to the spool before the answers leave."""

from collections.abc import Callable, Iterator
from functools import lru_cache
from statistics import fmean

from treadle.core.model_ref import ModelRef
from treadle.gateway.ledger.spool import Spool
from treadle.gateway.metrics import GatewayMeters
from treadle.gateway.pipeline.batch.prediction import PredictionRecord
from treadle.rpc import tracing
from treadle.rpc.codec.columns import encode_column
from treadle.rpc.codec.feature_columns import encode_feature
from treadle.rpc.codec.protobuf_wire import field
from treadle.v1 import types_pb2
from treadle.v1.evaluation_pb2 import PredictionBatch


class Recorder:
    """Writes records without the values of sensitive columns. `clock` gives seconds since 1970."""

    def __init__(self, spool: Spool, meters: GatewayMeters, clock: Callable[[], float]) -> None:
        self._spool = spool
        self._meters = meters
        self._clock = clock

    def remember(self, record: PredictionRecord) -> None:
        """Counts the answers and writes their record."""
        if not record.is_shadow:
            self._meters.answered(record)
        self._spool.append(self._encode(record))

    def _encode(self, record: PredictionRecord) -> bytes:
        """A `PredictionBatch`, serialised: its fields one behind the other, in any order."""
        message = PredictionBatch(
            prediction_ids=record.prediction_ids,
            degraded_reason=record.degraded_reason,
            at_micros=int(self._clock() * 1e6),
            latency_seconds=fmean(record.latencies_seconds),
            traceparent=tracing.traceparent(),
        )
        if len(record.trace_ids) == 1:
            message.trace_id = record.trace_ids[0]
        else:
            message.trace_ids.extend(record.each_row(record.trace_ids))
            message.latencies_seconds.extend(record.each_row(record.latencies_seconds))
        common = _common(record.deployment.name, record.ref, record.served_by, record.tenant, record.is_shadow)
        outputs = [field(PredictionBatch.OUTPUTS_FIELD_NUMBER, encode_column(column)) for column in record.outputs]
        return b"".join((message.SerializeToString(), common, *outputs, *_grounds(record)))


def _grounds(record: PredictionRecord) -> Iterator[bytes]:
    """Entities and features without those that are sensitive; while it is not known which are, none."""
    sensitive = record.deployment.sensitive_columns
    if sensitive is None:
        return
    for name, column in record.entities.items():
        if name not in sensitive:
            yield field(PredictionBatch.ENTITIES_FIELD_NUMBER, encode_column(column))
    for name, each in record.features.features.items() if record.features else ():
        if name not in sensitive:
            feature = encode_feature(each.column, each.statuses, each.ages_seconds)
            yield field(PredictionBatch.FEATURES_FIELD_NUMBER, feature)


@lru_cache(maxsize=1024)
def _common(deployment: str, ref: ModelRef, served_by: str, tenant: str, shadow: bool) -> bytes:
    """The fields that many records have in common."""
    model = types_pb2.ModelRef(model=ref.model, version=ref.version)
    common = PredictionBatch(deployment=deployment, model=model, served_by=served_by, tenant=tenant, shadow=shadow)
    return common.SerializeToString()
