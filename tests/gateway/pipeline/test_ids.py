"""Prediction ids: form, order, uniqueness."""

import random
import uuid

from treadle.gateway.pipeline.stages.prediction_ids import PredictionIds


def test_they_are_uuids_of_version_7_with_the_time_in_front() -> None:
    (made,) = PredictionIds(lambda: 1_700_000_000.123, random.Random(1).getrandbits).take(1)
    found = uuid.UUID(made)
    assert (found.version, found.variant) == (7, uuid.RFC_4122)
    assert found.int >> 80 == 1_700_000_000_123


def test_they_ascend_while_the_clock_stands_or_goes_back() -> None:
    times = iter([5.0, 5.0, 4.0, 6.0])
    ids = PredictionIds(lambda: next(times), random.Random(2).getrandbits)
    made = [id_ for _ in range(4) for id_ in ids.take(5_000)]
    assert made == sorted(made)
    assert len(set(made)) == len(made)


def test_a_burst_that_runs_out_of_numbers_borrows_from_the_future() -> None:
    ids = PredictionIds(lambda: 5.0, lambda bits: (1 << bits) - 1)
    ids._tail = (1 << 74) - 2
    ids._millis = 5_000
    made = ids.take(3)
    assert made == sorted(set(made))
