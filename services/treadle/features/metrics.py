"""What the features service tells about itself: how many values it served by status, what pushes wrote, span sizes.

Counts and names only; values of columns never come here.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np

from treadle.features.values import Feature, Status
from treadle.observability.telemetry.metrics import Meters
from treadle.plugins.stores import WriteCount
from treadle.rpc import tracing

_WORDS: Final = {int(each): each.name.lower() for each in Status}


class FeatureMeters:
    """The service's own metrics. Names of services and views come from definitions, not from callers."""

    def __init__(self, meters: Meters) -> None:
        self._values = meters.counter(
            "treadle_feature_values_total",
            "Feature values served, by status: present, null, missing, stale.",
            ["feature_service", "status"],
        )
        self._rows = meters.counter("treadle_feature_rows_pushed_total", "Rows pushed.", ["view", "outcome"])

    def looked_up(self, service: str, features: Sequence[Feature]) -> None:
        """One lookup was answered."""
        if not features:
            return
        counts = np.bincount(np.concatenate([each.statuses for each in features])).tolist()
        for status, count in enumerate(counts):
            if count:
                self._values.add(count, feature_service=service, status=_WORDS[status])
        if tracing.is_recording():
            tracing.annotate({"treadle.rows": features[0].column.rows})

    def pushed(self, view: str, count: WriteCount) -> None:
        """One message was written."""
        for outcome, rows in (("written", count.written), ("outdated", count.outdated)):
            if rows:
                self._rows.add(rows, view=view, outcome=outcome)
