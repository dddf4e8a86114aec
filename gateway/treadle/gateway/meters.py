"""What the gateway counts. Names are a contract with dashboards and alerts."""

from treadle.gateway.asking import Answer
from treadle.observability.metrics import SIZE_BUCKETS, Meters


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
        self._spooled = meters.gauge("treadle_gateway_spool_bytes", "Bytes of records that wait to be sent.")

    def answered(self, deployment: str, answer: Answer, seconds: float) -> None:
        """One request's answer."""
        self._answers.add(
            1,
            deployment=deployment,
            model=answer.ref.model,
            version=answer.ref.version,
            served_by=answer.served_by,
            degraded=bool(answer.degraded_reason),
        )
        self._seconds.observe(seconds, deployment=deployment, served_by=answer.served_by)
        self._rows.observe(len(answer.prediction_ids), deployment=deployment)

    def shadowed(self, version: str, outcome: str) -> None:
        """One shadow request's end: "ok", "error" or "dropped"."""
        self._shadows.add(1, version=version, outcome=outcome)

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
