"""An answered request as the ledger's record of it, written to the spool before the answer leaves."""

from collections.abc import Callable, Iterator
from functools import lru_cache
from statistics import fmean

from treadle.core.model_ref import ModelRef
from treadle.gateway.ledger.spool import Spool
from treadle.gateway.metrics import GatewayMeters
from treadle.gateway.pipeline import row_messages
from treadle.gateway.pipeline.chain import Remembered
from treadle.gateway.pipeline.feature_batch import Features
from treadle.gateway.pipeline.request import Ask
from treadle.gateway.pipeline.rows import SERVED_BY, AnsweredRows
from treadle.gateway.policy.deployments import Deployment
from treadle.rpc import tracing
from treadle.rpc.codec.columns import encode_column
from treadle.rpc.codec.protobuf_wire import field
from treadle.rpc.context import current
from treadle.v1 import types_pb2
from treadle.v1.evaluation_pb2 import PredictionBatch as Record


class Recorder:
    """Writes records without the values of sensitive columns."""

    def __init__(self, spool: Spool, meters: GatewayMeters, clock: Callable[[], float]) -> None:
        self._spool = spool
        self._meters = meters
        self._clock = clock

    def remember(self, done: Remembered) -> None:
        """Counts the answer and writes its record."""
        if not done.shadow:
            self._meters.answered(done.deployment.name, done.answer, done.latency_seconds)
        self._spool.append(self._record(done))

    def remember_rows(self, done: AnsweredRows) -> None:
        """The same for the rows of several requests, as one record."""
        deployment, outcome = done.deployment, done.outcome
        degraded = bool(outcome.degraded)
        self._meters.answered_rows(deployment.name, done.ref, SERVED_BY, done.latencies, degraded=degraded)
        record = Record(
            prediction_ids=done.prediction_ids,
            latency_seconds=fmean(done.latencies),
            degraded_reason=outcome.degraded,
            at_micros=int(self._clock() * 1e6),
        )
        if len(done.prediction_ids) == 1:
            record.trace_id = done.trace_ids[0]
        else:
            record.trace_ids.extend(done.trace_ids)
            record.latencies_seconds.extend(done.latencies)
        kind = _kind(deployment.name, done.ref, SERVED_BY, current().tenant, False)
        outputs = [field(Record.OUTPUTS_FIELD_NUMBER, encode_column(column)) for column in outcome.outputs]
        given = _given(deployment, done.ask, outcome.features)
        self._spool.append(b"".join((record.SerializeToString(), kind, *outputs, *given)))

    def _record(self, done: Remembered) -> bytes:
        """A `PredictionBatch`, serialised: its fields one behind the other, in any order."""
        answer, call = done.answer, current()
        record = Record(
            prediction_ids=answer.prediction_ids,
            trace_id=call.trace_id,
            degraded_reason=answer.degraded_reason,
            at_micros=int(self._clock() * 1e6),
            latency_seconds=done.latency_seconds,
            traceparent=tracing.traceparent(),
        )
        kind = _kind(done.deployment.name, answer.ref, answer.served_by, call.tenant, done.shadow)
        outputs = [field(Record.OUTPUTS_FIELD_NUMBER, encode_column(column)) for column in answer.outputs]
        return b"".join(
            (record.SerializeToString(), kind, *outputs, *_given(done.deployment, done.ask, answer.features))
        )


def _given(deployment: Deployment, ask: Ask, features: Features) -> Iterator[bytes]:
    """Entities and features without those that are sensitive; while it is not known which are, none."""
    sensitive = deployment.sensitive_columns
    if sensitive is None:
        return
    for name, column in ask.entities.items():
        if name not in sensitive:
            yield field(Record.ENTITIES_FIELD_NUMBER, encode_column(column))
    if features.is_one_row:
        rows = row_messages.with_values(features.batch, Record.FEATURES_FIELD_NUMBER, sensitive)
        yield rows[features.start] if rows else b""
        return
    for name, feature in features.items():
        if name not in sensitive:
            yield field(Record.FEATURES_FIELD_NUMBER, row_messages.to_message(feature).SerializeToString())


@lru_cache(maxsize=1024)
def _kind(deployment: str, ref: ModelRef, served_by: str, tenant: str, shadow: bool) -> bytes:
    """What many records have in common."""
    model = types_pb2.ModelRef(model=ref.model, version=ref.version)
    common = Record(deployment=deployment, model=model, served_by=served_by, tenant=tenant, shadow=shadow)
    return common.SerializeToString()
