"""The metric kind: one number that measures scores against labels."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Literal, TypeAlias

from treadle.plugins.tensors import Array

Task: TypeAlias = Literal["binary", "multiclass", "regression"]


class Metric(ABC):
    """A metric: a pure function of labels and scores that does not depend on the order of rows."""

    name: ClassVar[str]
    tasks: ClassVar[Sequence[Task]]
    """The tasks that the metric is defined for."""
    higher_is_better: ClassVar[bool]

    @abstractmethod
    def score(self, labels: Array, scores: Array) -> float:
        """Labels [N] against scores. Binary: scores [N], the positive class's; multiclass: [N, classes], labels
        are class indices; regression: [N]. NaN where it is not defined, such as one class only. N is 1 or more.
        """
