"""The metrics that dashboards and alerts may use: their names are a public contract.

A test checks that the code creates each of them, and that no dashboard uses others.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class MetricFamily:
    """A metric family of Prometheus."""

    kind: str
    """counter, gauge or histogram."""
    shows: str


METRICS: dict[str, MetricFamily] = {
    "rpc_server_call_duration_seconds": MetricFamily("histogram", "calls served, by method and status code"),
    "http_server_request_duration_seconds": MetricFamily(
        "histogram", "HTTP requests served, by method, route and status"
    ),
    "rpc_client_call_duration_seconds": MetricFamily("histogram", "calls made, by method and status code"),
    "treadle_gateway_answers_total": MetricFamily("counter", "predictions, by what served them and whether degraded"),
    "treadle_gateway_answer_seconds": MetricFamily("histogram", "admission to answer, by deployment"),
    "treadle_gateway_request_rows": MetricFamily("histogram", "rows of a request, by deployment"),
    "treadle_gateway_records_total": MetricFamily("counter", "prediction records acknowledged by the ledger"),
    "treadle_gateway_records_dropped_total": MetricFamily("counter", "prediction records not kept, by reason"),
    "treadle_gateway_spool_bytes": MetricFamily("gauge", "prediction records waiting to be sent"),
    "treadle_gateway_shadows_total": MetricFamily("counter", "shadow requests, by outcome"),
    "treadle_model_inference_seconds": MetricFamily("histogram", "one batch inside the model, by model and version"),
    "treadle_model_queue_seconds": MetricFamily("histogram", "wait of a request for its batch"),
    "treadle_model_batch_rows": MetricFamily("histogram", "rows of one batch"),
    "treadle_model_rows_total": MetricFamily("counter", "rows computed"),
    "treadle_model_requests_total": MetricFamily("counter", "requests answered by a model, by status code"),
    "treadle_feature_values_total": MetricFamily("counter", "feature values served, by feature service and status"),
    "treadle_feature_rows_pushed_total": MetricFamily(
        "counter", "rows pushed to the online store, by view and outcome"
    ),
    "treadle_ledger_rows_total": MetricFamily("counter", "predictions and labels sent to the ledger, by outcome"),
    "treadle_metrics_overflow_total": MetricFamily("counter", "observations whose labels became 'other'"),
    "treadle_spans_lost_total": MetricFamily("counter", "spans that no collector accepted"),
    "treadle_background_restarts_total": MetricFamily(
        "counter", "background loops that failed and were started again, by loop"
    ),
    "treadle_traces_expired_total": MetricFamily("counter", "spans that the trace store expired"),
}


def series() -> set[str]:
    """The names of the time series in Prometheus; a histogram has three."""
    found: set[str] = set()
    for name, metric in METRICS.items():
        suffixes = ("_bucket", "_count", "_sum") if metric.kind == "histogram" else ("",)
        found |= {name + suffix for suffix in suffixes}
    return found
