"""Every metric that dashboards and alerts may rely on: names here are a contract.

A test holds that each is made somewhere in the code and that no dashboard asks for another.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric family."""

    kind: str
    """counter, gauge or histogram."""
    shows: str


METRICS: dict[str, Metric] = {
    "rpc_server_call_duration_seconds": Metric("histogram", "calls served, by method and status code"),
    "http_server_request_duration_seconds": Metric("histogram", "HTTP requests served, by method, route and status"),
    "rpc_client_call_duration_seconds": Metric("histogram", "calls made, by method and status code"),
    "treadle_gateway_answers_total": Metric("counter", "predictions, by what served them and whether degraded"),
    "treadle_gateway_answer_seconds": Metric("histogram", "admission to answer, by deployment"),
    "treadle_gateway_request_rows": Metric("histogram", "rows of a request, by deployment"),
    "treadle_gateway_records_total": Metric("counter", "prediction records acknowledged by the ledger"),
    "treadle_gateway_records_dropped_total": Metric("counter", "prediction records not kept, by reason"),
    "treadle_gateway_spool_bytes": Metric("gauge", "prediction records waiting to be sent"),
    "treadle_gateway_shadows_total": Metric("counter", "shadow requests, by outcome"),
    "treadle_model_inference_seconds": Metric("histogram", "one batch inside the model, by model and version"),
    "treadle_model_queue_seconds": Metric("histogram", "wait of a request for its batch"),
    "treadle_model_batch_rows": Metric("histogram", "rows of one batch"),
    "treadle_model_rows_total": Metric("counter", "rows computed"),
    "treadle_model_requests_total": Metric("counter", "requests answered by a model, by status code"),
    "treadle_feature_values_total": Metric("counter", "feature values served, by feature service and status"),
    "treadle_feature_rows_pushed_total": Metric("counter", "rows pushed to the online store, by view and outcome"),
    "treadle_ledger_rows_total": Metric("counter", "predictions and labels sent to the ledger, by outcome"),
    "treadle_metrics_overflow_total": Metric("counter", "observations whose labels became 'other'"),
    "treadle_spans_lost_total": Metric("counter", "spans that no collector accepted"),
    "treadle_traces_expired_total": Metric("counter", "spans that the trace store let go"),
}


def series() -> set[str]:
    """The names under which Prometheus stores them: histograms as three."""
    found: set[str] = set()
    for name, metric in METRICS.items():
        suffixes = ("_bucket", "_count", "_sum") if metric.kind == "histogram" else ("",)
        found |= {name + suffix for suffix in suffixes}
    return found
