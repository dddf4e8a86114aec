"""An answered request as the ledger's record of it, written to the spool before the answer leaves."""

from collections.abc import Callable

from opentelemetry import trace

from treadle.gateway import row_messages
from treadle.gateway.chain import Remembered
from treadle.gateway.meters import GatewayMeters
from treadle.gateway.spool import Spool
from treadle.observability.propagation import inject
from treadle.rpc.columns import encode_all
from treadle.rpc.context import current
from treadle.v1 import evaluation_pb2, types_pb2


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

    def _record(self, done: Remembered) -> bytes:
        """A `PredictionBatch`, serialised."""
        answer, call = done.answer, current()
        record = evaluation_pb2.PredictionBatch(
            prediction_ids=answer.prediction_ids,
            deployment=done.deployment.name,
            model=types_pb2.ModelRef(model=answer.ref.model, version=answer.ref.version),
            served_by=answer.served_by,
            degraded_reason=answer.degraded_reason,
            trace_id=call.trace_id,
            tenant=call.tenant,
            at_micros=int(self._clock() * 1e6),
            outputs=encode_all(answer.outputs),
            latency_seconds=done.latency_seconds,
            traceparent=dict(inject(trace.get_current_span())).get("traceparent", ""),
            shadow=done.shadow,
        )
        sensitive = done.deployment.sensitive_columns
        if sensitive is None:  # while it is not known which are sensitive, none is recorded
            return record.SerializeToString()
        shown = [column for column in done.ask.entities.values() if column.name not in sensitive]
        record.entities.extend(encode_all(shown))
        features = answer.features
        if features.is_one_row:
            rows = row_messages.with_values(features.batch, _FEATURES, sensitive)
            return record.SerializeToString() + (rows[features.start] if rows else b"")
        messages = [row_messages.to_message(each) for name, each in features.items() if name not in sensitive]
        record.features.extend(messages)
        return record.SerializeToString()


_FEATURES = evaluation_pb2.PredictionBatch.FEATURES_FIELD_NUMBER
