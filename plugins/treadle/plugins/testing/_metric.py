"""The contract of metrics, as tests."""
# ruff: noqa: S101 - a test suite asserts

from typing import Any

import numpy as np
import pytest

from treadle.plugins.metrics import Metric
from treadle.plugins.tensors import Array


class MetricContract:
    """Inherit, name the class Test…, and override all four methods."""

    def metric(self) -> Metric:
        """The metric that the plugin registers."""
        raise NotImplementedError

    def labels(self) -> Any:
        """True labels [N]: two rows or more, more than one class where there are classes."""
        raise NotImplementedError

    def scores(self) -> Any:
        """The scores of a model of medium quality for them."""
        raise NotImplementedError

    def expected(self) -> float:
        """The value of the metric, computed in another way."""
        raise NotImplementedError

    @pytest.fixture
    def rows(self) -> tuple[Array, Array]:
        return np.asarray(self.labels()), np.asarray(self.scores())

    def test_name_tasks_and_direction_are_declared(self) -> None:
        metric = self.metric()
        assert metric.name
        assert metric.tasks
        assert set(metric.tasks) <= {"binary", "multiclass", "regression"}
        assert isinstance(metric.higher_is_better, bool)

    def test_the_value_is_the_expected_one(self, rows: tuple[Array, Array]) -> None:
        score = self.metric().score(*rows)
        assert isinstance(score, float)
        assert score == pytest.approx(self.expected())

    def test_order_of_rows_does_not_matter(self, rows: tuple[Array, Array]) -> None:
        labels, scores = rows
        assert self.metric().score(labels[::-1].copy(), scores[::-1].copy()) == pytest.approx(self.expected())

    def test_one_row_is_a_number_or_nan(self, rows: tuple[Array, Array]) -> None:
        labels, scores = rows
        assert isinstance(self.metric().score(labels[:1], scores[:1]), float)

    def test_rows_are_not_changed(self, rows: tuple[Array, Array]) -> None:
        for array in rows:
            array.flags.writeable = False
        self.metric().score(*rows)
