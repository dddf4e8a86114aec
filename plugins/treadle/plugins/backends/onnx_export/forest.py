"""Trees of any framework as one TreeEnsembleRegressor node of ONNX.

Converted trees go wrong at thresholds: a value that rounding moves across a threshold reaches another leaf. So
thresholds keep the precision of their framework, and values are compared in the precision in which it compares them.
Leaves are summed in that precision too; the result is FP32, the only output type of this operator.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from treadle.plugins.backends.onnx_export.graph import Graph
from treadle.plugins.tensors import Array


@dataclass(frozen=True, slots=True)
class Tree:
    """A tree as arrays with one element a node; node 0 is the root."""

    feature: Array
    threshold: Array
    left: Array
    """The child for values below the threshold; negative at a leaf."""
    right: Array
    nan_left: Array
    """Whether missing values go left."""
    leaf: Array
    """[nodes, outputs]: the values that a leaf adds; ignored at the other nodes."""
    output: int = 0
    """The first output that the leaves add to."""


@dataclass(frozen=True, slots=True)
class Forest:
    """A sum of trees with the result [rows, outputs]."""

    trees: Sequence[Tree]
    outputs: int
    dtype: str = "FP64"
    """Precision of the comparisons and the sums: FP32 or FP64."""
    below: bool = False
    """Whether only values below the threshold go left; otherwise a value at the threshold goes left too."""
    base: Array | None = None
    """Added to each output."""

    def add_to(self, graph: Graph, matrix: str) -> str:
        """Adds the trees to a graph whose `matrix` has the precision of this forest.

        Returns the name of the sums, FP32.
        """
        return graph.add(
            "TreeEnsembleRegressor",
            matrix,
            domain="ai.onnx.ml",
            n_targets=self.outputs,
            aggregate_function="SUM",
            post_transform="NONE",
            **self._nodes(),
            **self._leaves(),
            **({} if self.base is None else self._numbers("base_values", self.base)),
        )

    def sums(self, row: Array) -> Array:
        """The sums [outputs] of the trees, without `base`, for one row without missing values."""
        total = np.zeros(self.outputs)
        for tree in self.trees:
            node = 0
            while tree.left[node] >= 0:
                value, threshold = row[tree.feature[node]], tree.threshold[node]
                goes_left = value < threshold if self.below else value <= threshold
                node = (tree.left if goes_left else tree.right)[node]
            total[tree.output : tree.output + tree.leaf.shape[1]] += tree.leaf[node]
        return total

    def _nodes(self) -> dict[str, Any]:
        leaf = [tree.left < 0 for tree in self.trees]
        mode = b"BRANCH_LT" if self.below else b"BRANCH_LEQ"

        def joined(each: list[Array]) -> list[int]:
            return [int(value) for array in each for value in array]

        return {
            "nodes_treeids": joined([np.full(len(tree.left), i) for i, tree in enumerate(self.trees)]),
            "nodes_nodeids": joined([np.arange(len(tree.left)) for tree in self.trees]),
            "nodes_featureids": joined([np.where(end, 0, t.feature) for t, end in zip(self.trees, leaf, strict=True)]),
            "nodes_modes": [b"LEAF" if end else mode for ends in leaf for end in ends],
            "nodes_truenodeids": joined([np.where(end, 0, t.left) for t, end in zip(self.trees, leaf, strict=True)]),
            "nodes_falsenodeids": joined([np.where(end, 0, t.right) for t, end in zip(self.trees, leaf, strict=True)]),
            "nodes_missing_value_tracks_true": joined([tree.nan_left for tree in self.trees]),
            **self._numbers(
                "nodes_values",
                np.concatenate([np.where(end, 0.0, t.threshold) for t, end in zip(self.trees, leaf, strict=True)]),
            ),
        }

    def _leaves(self) -> dict[str, Any]:
        trees: list[int] = []
        nodes: list[int] = []
        outputs: list[int] = []
        weights: list[Array] = []
        for index, tree in enumerate(self.trees):
            ends = np.flatnonzero(tree.left < 0)
            width = tree.leaf.shape[1]
            trees += [index] * (len(ends) * width)
            nodes += [int(end) for end in np.repeat(ends, width)]
            outputs += list(range(tree.output, tree.output + width)) * len(ends)
            weights.append(tree.leaf[ends].ravel())
        return {
            "target_treeids": trees,
            "target_nodeids": nodes,
            "target_ids": outputs,
            **self._numbers("target_weights", np.concatenate(weights)),
        }

    def _numbers(self, name: str, values: Array) -> dict[str, Any]:
        """An attribute in the precision of this forest."""
        from onnx import numpy_helper

        if self.dtype == "FP32":
            return {name: [float(value) for value in values.astype(np.float32)]}
        return {f"{name}_as_tensor": numpy_helper.from_array(values.astype(np.float64), name)}


def fp64_thresholds(thresholds: Array) -> Array:
    """FP64 thresholds that split FP64 values as `thresholds` split the values rounded to FP32.

    scikit-learn's trees round values to FP32 first. The greatest FP64 number that rounds to at most `t` gives the same
    split in one comparison: it is the middle between the last FP32 number up to `t` and the next, or just below it
    where a tie rounds up.
    """
    last = thresholds.astype(np.float32)
    last = np.where(last > thresholds, np.nextafter(last, np.float32(-np.inf)), last)
    following = np.nextafter(last, np.float32(np.inf))
    middle = last.astype(np.float64) / 2 + following.astype(np.float64) / 2
    ties_stay = (last.view(np.int32) & 1) == 0
    shifted = np.where(ties_stay, middle, np.nextafter(middle, -np.inf))
    return np.where(np.isfinite(middle), shifted, thresholds)
