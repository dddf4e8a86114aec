"""The two tables of the ledger: batches of predictions, and labels."""

from typing import Any

BATCHES, LABELS = "batches", "labels"
SCALARS = (
    ("at_micros", "int64"),
    ("deployment", "string"),
    ("model", "string"),
    ("version", "int64"),
    ("served_by", "string"),
    ("degraded_reason", "string"),
    ("trace_id", "string"),
    ("tenant", "string"),
    ("latency_seconds", "float64"),
    ("shadow", "bool"),
)
"""What all predictions of a batch share. Where they are of several requests, see `Rows.of_requests`."""
KEYS = {BATCHES: "prediction_ids", LABELS: "key"}
"""The column with what makes a row (or each of its predictions) the same when sent again."""
ARRIVED = "recorded_micros"
"""When a row arrived, microseconds since 1970 (UTC): what retention goes by."""
UNIQUE = ("outputs", "message", "prediction_ids", "key", "prediction_id")
"""Columns whose values hardly repeat, for which a dictionary would be wasted work."""


def batch_schema() -> Any:
    """One row a batch; `batch` numbers them in the order of arrival."""
    import pyarrow as pa

    kinds = {"string": pa.string(), "int64": pa.int64(), "float64": pa.float64(), "bool": pa.bool_()}
    return pa.schema(
        [
            *((name, kinds[kind]) for name, kind in SCALARS),
            ("batch", pa.int64()),
            (ARRIVED, pa.int64()),
            ("prediction_ids", pa.list_(pa.string())),
            ("positions", pa.list_(pa.int32())),
            ("rows", pa.int32()),
            ("outputs", pa.binary()),
            ("message", pa.binary()),
        ]
    )


def label_schema() -> Any:
    """One row a label; `sequence` rises with arrival."""
    import pyarrow as pa

    return pa.schema(
        [
            ("prediction_id", pa.string()),
            ("label", pa.float64()),
            ("at_micros", pa.int64()),
            ("sequence", pa.int64()),
            (ARRIVED, pa.int64()),
            ("key", pa.string()),
        ]
    )
