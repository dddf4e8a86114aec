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
"""Columns with one value for all predictions of a batch. For batches of several requests, see
`LedgerRows.with_request_fields`."""
KEYS = {BATCHES: "prediction_ids", LABELS: "key"}
"""By table, the column of the key that identifies a row, or each prediction of a row, when it is sent twice."""
ARRIVED = "recorded_micros"
"""The column of the arrival time, microseconds since 1970 (UTC), which decides how long a row is kept."""
UNIQUE = ("outputs", "message", "prediction_ids", "key", "prediction_id")
"""Columns whose values hardly repeat: they are written without dictionary encoding."""


def batch_schema() -> Any:
    """The Arrow schema of BATCHES: one row a batch, numbered by `batch` in the order of arrival."""
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
    """The Arrow schema of LABELS: one row a label, numbered by `sequence` in the order of arrival."""
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
