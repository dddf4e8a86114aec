"""Conversion of XGBoost and LightGBM models to ONNX, from their JSON dumps."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from treadle.plugins.backends.onnx_export.forest import Forest, Tree
from treadle.plugins.backends.onnx_export.graph import Graph
from treadle.plugins.backends.onnx_export.scores import classifier_outputs, regressor_outputs, two_class_base
from treadle.plugins.errors import NotCompiled
from treadle.plugins.tensors import Array

# The link from the sum of trees to the prediction by objective; the objectives in _PLAIN have none.
_XGBOOST_LINKS: Mapping[str, str] = {
    "reg:logistic": "sigmoid",
    "count:poisson": "exp",
    "reg:gamma": "exp",
    "reg:tweedie": "exp",
}
_XGBOOST_PLAIN = frozenset(
    {
        "reg:squarederror",
        "reg:absoluteerror",
        "reg:pseudohubererror",
        "reg:quantileerror",
        "rank:pairwise",
        "rank:ndcg",
        "rank:map",
        "binary:logitraw",
    }
)
_LIGHTGBM_LINKS: Mapping[str, str] = {
    "poisson": "exp",
    "gamma": "exp",
    "tweedie": "exp",
    "cross_entropy": "sigmoid",
}
_LIGHTGBM_PLAIN = frozenset(
    {"regression", "regression_l1", "huber", "fair", "quantile", "mape", "lambdarank", "rank_xendcg"}
)

_ZERO = float(np.float32(1e-35))
"""LightGBM treats values up to this magnitude as 0."""


def xgboost_outputs(booster: Any, graph: Graph, matrix: str) -> dict[str, str]:
    """Adds an XGBoost model to the graph. It compares and sums in FP32; a value below the threshold goes left."""
    learner, best = json.loads(booster.save_raw("json"))["learner"], booster.attr("best_iteration")
    objective, trees = learner["objective"]["name"], _xgboost_trees(learner, best)
    groups = max(1, int(learner["learner_model_param"]["num_class"]))
    row = np.zeros((1, booster.num_features()), np.float32)
    rounds = (0, int(best) + 1) if best is not None else (0, 0)
    margin = np.ravel(booster.inplace_predict(row, predict_type="margin", iteration_range=rounds))
    base = margin - Forest(trees, groups, "FP32", below=True).sums(row[0])
    values = graph.cast(matrix, "FP32")
    if objective == "binary:logistic":
        second = [replace(tree, output=1) for tree in trees]
        sums = Forest(second, 2, "FP32", below=True, base=two_class_base(base[0])).add_to(graph, values)
        return classifier_outputs(graph, sums, np.arange(2), "softmax", "FP32")
    sums = Forest(trees, groups, "FP32", below=True, base=base).add_to(graph, values)
    if objective.startswith("multi:"):
        return classifier_outputs(graph, sums, np.arange(groups), "softmax", "FP32")
    return regressor_outputs(graph, sums, _link(objective, _XGBOOST_LINKS, _XGBOOST_PLAIN, groups), "FP32")


def lightgbm_outputs(booster: Any, classes: Array | None, graph: Graph, matrix: str) -> dict[str, str]:
    """Adds a LightGBM model to the graph. It compares and sums in FP64; a value at the threshold goes left."""
    dump = booster.dump_model()
    if dump["average_output"]:
        raise NotCompiled("it averages its trees (boosting type rf)")
    groups = dump["num_tree_per_iteration"]
    trees = [_lightgbm_tree(info["tree_structure"], index % groups) for index, info in enumerate(dump["tree_info"])]
    objective, *settings = dump.get("objective", "custom").split(" ")
    slope = next((float(each.removeprefix("sigmoid:")) for each in settings if each.startswith("sigmoid:")), 1.0)
    values = graph.cast(matrix, "FP64")
    if objective == "binary":
        second = [replace(tree, leaf=tree.leaf * slope, output=1) for tree in trees]
        names = np.arange(2) if classes is None else classes
        return classifier_outputs(graph, Forest(second, 2).add_to(graph, values), names, "softmax", "FP64")
    if objective in {"multiclass", "multiclassova"}:
        names = np.arange(groups) if classes is None else classes
        scaled = trees if objective == "multiclass" else [replace(tree, leaf=tree.leaf * slope) for tree in trees]
        link = "softmax" if objective == "multiclass" else "sigmoid"
        return classifier_outputs(graph, Forest(scaled, groups).add_to(graph, values), names, link, "FP64")
    if "sqrt" in settings:
        raise NotCompiled("it predicts the root of its target (reg_sqrt)")
    link = _link(objective, _LIGHTGBM_LINKS, _LIGHTGBM_PLAIN, groups)
    return regressor_outputs(graph, Forest(trees, 1).add_to(graph, values), link, "FP64")


def _link(objective: str, links: Mapping[str, str], plain: frozenset[str], groups: int) -> str:
    if groups != 1:
        raise NotCompiled(f"it predicts {groups} targets")
    if objective not in links and objective not in plain:
        raise NotCompiled(f"objective {objective!r} has no ONNX form here")
    return links.get(objective, "none")


def _xgboost_trees(learner: Mapping[str, Any], best: str | None) -> list[Tree]:
    """The trees up to the best round, each with the output of its class."""
    gbtree = learner["gradient_booster"]
    if gbtree["name"] == "dart":
        raise NotCompiled("booster dart weighs its trees")
    if gbtree["name"] != "gbtree":
        raise NotCompiled(f"booster {gbtree['name']} has no trees")
    model = gbtree["model"]
    ends = model["iteration_indptr"]
    count = ends[int(best) + 1] if best is not None else ends[-1]
    return [_xgboost_tree(model["trees"][i], model["tree_info"][i]) for i in range(count)]


def _xgboost_tree(tree: Mapping[str, Any], output: int) -> Tree:
    if int(tree["tree_param"]["size_leaf_vector"]) > 1:
        raise NotCompiled("its trees predict several targets at once")
    if any(tree["split_type"]):
        raise NotCompiled("its trees split on categories")
    values = np.asarray(tree["split_conditions"], np.float32)
    return Tree(
        np.asarray(tree["split_indices"]),
        values,
        np.asarray(tree["left_children"]),
        np.asarray(tree["right_children"]),
        np.asarray(tree["default_left"], bool),
        values.reshape(-1, 1),
        output,
    )


def _lightgbm_tree(root: Mapping[str, Any], output: int) -> Tree:
    feature, threshold, left, right, nan_left, leaf = map(np.array, zip(*_nodes_in_order(root), strict=True))
    return Tree(feature, threshold, left, right, nan_left, leaf, output)


def _nodes_in_order(root: Mapping[str, Any]) -> Iterator[tuple[int, float, int, int, bool, Sequence[float]]]:
    """The nodes in breadth-first order, so that the children of a node follow those of the nodes before it."""
    waiting, following = [root], 1
    while waiting:
        node = waiting.pop(0)
        if "split_feature" not in node:
            if node.get("leaf_coeff"):
                raise NotCompiled("its leaves hold linear models")
            yield 0, 0.0, -1, -1, False, [node["leaf_value"]]
            continue
        if node["decision_type"] != "<=":
            raise NotCompiled("its trees split on categories")
        if node["missing_type"] == "Zero":
            raise NotCompiled("it takes 0 for a missing value")
        threshold = _zero_adjusted(float(node["threshold"]))
        # If training had no missing value, LightGBM treats a missing value as 0.
        nan_left = node["default_left"] if node["missing_type"] == "NaN" else threshold >= 0
        waiting += [node["left_child"], node["right_child"]]
        yield node["split_feature"], threshold, following, following + 1, nan_left, [0.0]
        following += 2


def _zero_adjusted(threshold: float) -> float:
    """The threshold with the same splits where tiny values are not treated as 0, as LightGBM does."""
    if -_ZERO <= threshold < 0:
        return float(np.nextafter(-_ZERO, -np.inf))
    return _ZERO if 0 <= threshold < _ZERO else threshold
