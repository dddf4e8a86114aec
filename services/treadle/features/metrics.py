"""Metrics of the features service: values served by status, rows pushed; and the number of rows on lookup spans.

Only counts and names are recorded, never values of columns.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np

from treadle.features.values import FeatureResult, FeatureStatus
from treadle.observability.telemetry.metrics import Meters
from treadle.plugins.stores import WriteCount
from treadle.rpc import tracing

_STATUS_NAMES: Final = {int(each): each.name.lower() for each in FeatureStatus}


class FeatureMeters:
    """The metrics. Label values come from definitions, never from callers, which bounds their number."""

    def __init__(self, meters: Meters) -> None:
        self._values = meters.counter(
            "treadle_feature_values_total",
            "Feature values served, by status: present, null, missing, stale.",
            ["feature_service", "status"],
        )
        self._rows = meters.counter("treadle_feature_rows_pushed_total", "Rows pushed.", ["view", "outcome"])

    def record_lookup(self, service: str, features: Sequence[FeatureResult]) -> None:
        """Counts the values of one successful lookup by status."""
        if not features:
            return
        counts = np.bincount(np.concatenate([each.statuses for each in features])).tolist()
        for status, count in enumerate(counts):
            if count:
                self._values.add(count, feature_service=service, status=_STATUS_NAMES[status])
        if tracing.is_recording():
            tracing.annotate({"treadle.rows": features[0].column.rows})

    def record_push(self, view: str, count: WriteCount) -> None:
        """Counts the rows of one written push message."""
        for outcome, rows in (("written", count.written), ("outdated", count.outdated)):
            if rows:
                self._rows.add(rows, view=view, outcome=outcome)
