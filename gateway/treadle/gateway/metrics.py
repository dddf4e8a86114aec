"""What the gateway counts. Names are a contract with dashboards and alerts."""

from collections.abc import Callable

from treadle.core.model_ref import ModelRef
from treadle.gateway.pipeline.batch.prediction import PredictionRecord
from treadle.observability.telemetry.metrics import SIZE_BUCKETS, Meters

_Kind = tuple[str, ModelRef, str, bool]
"""Deployment, version, served by, degraded."""
_Bound = tuple[Callable[[float], None], Callable[[float, str], None], Callable[[float, str], None]]


class GatewayMeters:
    """The gateway's metrics, made once."""

    def __init__(self, meters: Meters) -> None:
        version = ["deployment", "model", "version", "served_by"]
        self._answers = meters.counter("treadle_gateway_answers_total", "Requests answered.", [*version, "degraded"])
        self._seconds = meters.histogram(
            "treadle_gateway_answer_seconds", "Time from admission to answer.", ["deployment", "served_by"]
        )
        self._rows = meters.histogram(
            "treadle_gateway_request_rows", "Rows of the requests answered.", ["deployment"], SIZE_BUCKETS
        )
        self._shadows = meters.counter(
            "treadle_gateway_shadows_total", "Shadow requests by how they ended.", ["version", "outcome"]
        )
        self._records = meters.counter(
            "treadle_gateway_records_total", "Prediction records (rows) that the ledger has acknowledged.", ["outcome"]
        )
        self._dropped = meters.counter(
            "treadle_gateway_records_dropped_total", "Prediction records (requests) that were not kept.", ["reason"]
        )
        self._bound: dict[_Kind, _Bound] = {}
        self._spooled = meters.gauge("treadle_gateway_spool_bytes", "Bytes of records that wait to be sent.")

    def answered(self, record: PredictionRecord) -> None:
        """The answers to the requests of a record."""
        kind = (record.deployment.name, record.ref, record.served_by, bool(record.degraded_reason))
        seconds = record.latencies_seconds
        count, observe_seconds, observe_rows = self._bound.get(kind) or self._bind(kind)
        count(len(seconds))
        if len(seconds) == 1:
            observe_seconds(seconds[0], "")
            observe_rows(record.rows, "")
        else:
            self._seconds.observe_many(seconds, deployment=record.deployment.name, served_by=record.served_by)
            self._rows.observe_many(record.row_counts, deployment=record.deployment.name)

    def _bind(self, kind: _Kind) -> _Bound:
        """The three metrics of one kind of answer. Kinds are as many as policies make them: a caller can't."""
        deployment, ref, served_by, degraded = kind
        version = {"deployment": deployment, "model": ref.model, "version": ref.version, "served_by": served_by}
        bound = (
            self._answers.bound(**version, degraded=degraded),
            self._seconds.bound(deployment=deployment, served_by=served_by),
            self._rows.bound(deployment=deployment),
        )
        self._bound[kind] = bound
        return bound

    def shadowed(self, version: str, outcome: str, requests: int) -> None:
        """How some shadow requests ended: "ok", "error" or "dropped"."""
        self._shadows.add(requests, version=version, outcome=outcome)

    def sent(self, recorded: int, duplicate: int) -> None:
        """Rows that the ledger acknowledged."""
        self._records.add(recorded, outcome="recorded")
        self._records.add(duplicate, outcome="duplicate")

    def dropped(self, reason: str) -> None:
        """One record that was not kept."""
        self._dropped.add(1, reason=reason)

    def spooled(self, held: int) -> None:
        """Bytes that wait."""
        self._spooled.set(held)
