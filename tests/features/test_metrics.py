"""Metrics count values by status and rows by outcome, and hold no values."""

import numpy as np
from prometheus_client import generate_latest

from treadle.core.column import Column
from treadle.features.metrics import FeatureMeters
from treadle.features.values import context_feature
from treadle.observability.telemetry.metrics import Meters
from treadle.plugins.stores import WriteCount


def test_counts() -> None:
    meters = Meters()
    mine = FeatureMeters(meters)
    secret = context_feature(Column.of("ssn", np.array(["secret", "", ""], object), nulls=[False, True, True]))
    mine.record_lookup("flights", [secret, secret])
    mine.record_lookup("flights", [])
    mine.record_push("weather", WriteCount(3, 0))
    text = generate_latest(meters.registry).decode()
    assert 'treadle_feature_values_total{feature_service="flights",status="present"} 2.0' in text
    assert 'treadle_feature_values_total{feature_service="flights",status="null"} 4.0' in text
    assert 'treadle_feature_rows_pushed_total{outcome="written",view="weather"} 3.0' in text
    assert "outdated" not in text
    assert "secret" not in text
