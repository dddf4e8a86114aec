"""Conversion of scikit-learn models to ONNX: trees here, so that thresholds stay exact; other models by skl2onnx."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from treadle.plugins.backends._matrix import assemble, labels, width
from treadle.plugins.backends.onnx_export.forest import Forest, Tree, fp64_thresholds
from treadle.plugins.backends.onnx_export.graph import Graph, matrix_dtype
from treadle.plugins.backends.onnx_export.pipeline_tail import booster_of
from treadle.plugins.backends.onnx_export.scores import (
    classifier_outputs,
    label_node,
    regressor_outputs,
    two_class_base,
)
from treadle.plugins.backends.onnx_export.skl2onnx import INPUT, convert, session_for
from treadle.plugins.compiling.probing import probes
from treadle.plugins.errors import NotCompiled
from treadle.plugins.tensors import Array, Signature, Tensors

_SEED = 11


def to_onnx(model: Any, sample: Tensors, signature: Signature) -> bytes:
    """The serialized ONNX model with the inputs and outputs of the signature. NotCompiled says why there is none."""
    graph = Graph(signature)
    matrix, dtype = graph.matrix()
    steps = model.steps if type(model).__name__ == "Pipeline" else [("model", model)]
    last = steps[-1][1]
    tree_converter = _tree_converter(model, last)
    features = width(signature) or getattr(model, "n_features_in_", 0)
    if tree_converter is None:
        return graph.finish(_converted(model, graph, matrix, dtype, features))
    if any(step not in (None, "passthrough") for _, step in steps[:-1]):
        body = convert(model[:-1], dtype, features)
        _check_exact(model[:-1], body, sample, signature)
        ((matrix, _),) = graph.embed(body, matrix)
    return graph.finish(tree_converter(last, graph, graph.cast(matrix, "FP64")))


def _tree_converter(model: Any, last: Any) -> "_TreeConverter | None":
    """The function that adds the trees of the last step to a graph; None for models that skl2onnx converts."""
    booster = booster_of(model)
    if booster is not None:
        return booster.add_to_graph
    return _TREE_CONVERTERS.get(type(last).__name__) if type(last).__module__.startswith("sklearn.") else None


def _converted(model: Any, graph: Graph, matrix: str, dtype: str, features: int) -> dict[str, str]:
    """Converts a model by skl2onnx: in the precision of the inputs, or in FP32 if that fails."""
    from sklearn.base import is_classifier

    try:
        body = convert(model, dtype, features)
    except NotCompiled:
        if dtype == "FP32":
            raise
        body = convert(model, "FP32", features)
        matrix = graph.cast(matrix, "FP32")
    _check_no_trees_behind_steps(model, body)
    (answer, rank), *rest = graph.embed(body, matrix)
    if rank != 1:
        answer = graph.add("Reshape", answer, graph.constant([-1]))
    if not is_classifier(model):
        return {"prediction": answer}
    if rest and hasattr(model, "predict_proba"):
        return {"label": answer, "probability": rest[0][0]}
    return {"label": answer}


def _check_no_trees_behind_steps(model: Any, body: Any) -> None:
    parts = model.get_params(deep=True).values() if hasattr(model, "get_params") else ()
    steps = any(type(part).__name__ in {"ColumnTransformer", "FeatureUnion", "Pipeline"} for part in (model, *parts))
    if steps and any(node.op_type.startswith("TreeEnsemble") for node in body.graph.node):
        raise NotCompiled("its trees stand behind steps of which nothing shows that they round as ONNX does")


def _check_exact(steps: Any, body: Any, sample: Tensors, signature: Signature) -> None:
    """NotCompiled unless `body` and `steps` have bitwise equal outputs: the trees after them depend on the last bit."""
    session = session_for(body)
    names = tuple(spec.name for spec in signature.inputs)
    dtype = np.float32 if matrix_dtype(signature) == "FP32" else np.float64
    for _, rows in [("", sample), *probes(signature, sample, (), np.random.default_rng(_SEED))]:
        matrix = assemble(names, rows)
        try:
            wanted = steps.transform(matrix)
        except ValueError:  # a category that it never saw, for instance
            continue
        wanted = wanted.toarray() if hasattr(wanted, "toarray") else np.asarray(wanted)
        (got,) = session.run(None, {INPUT: matrix.astype(dtype)})
        if got.shape != wanted.shape or not np.array_equal(got, wanted, equal_nan=True):
            raise NotCompiled(
                "the steps before its trees round otherwise in ONNX, and trees answer by the last bit"
                + ("; FP64 inputs may help: give the sample as such, and send them" if dtype is np.float32 else "")
            )


def _forest_classifier(model: Any, graph: Graph, matrix: str) -> dict[str, str]:
    """Decision trees with probabilities at the leaves, whose mean is the probability."""
    trees = getattr(model, "estimators_", [model])
    _one_target(model)
    sums = Forest([_tree(each.tree_, shares=True) for each in trees], len(model.classes_)).add_to(graph, matrix)
    probability = graph.add("Div", graph.cast(sums, "FP64"), graph.constant(float(len(trees))))
    return {"probability": probability, "label": label_node(graph, probability, labels(model.classes_))}


def _forest_regressor(model: Any, graph: Graph, matrix: str) -> dict[str, str]:
    trees = getattr(model, "estimators_", [model])
    _one_target(model)
    sums = Forest([_tree(each.tree_) for each in trees], 1).add_to(graph, matrix)
    mean = graph.add("Div", graph.cast(sums, "FP64"), graph.constant(float(len(trees))))
    return regressor_outputs(graph, mean, "none", "FP64")


def _boosting(model: Any, graph: Graph, matrix: str) -> dict[str, str]:
    """Adds a GradientBoostingClassifier or -Regressor."""
    if model.init_ != "zero" and not type(model.init_).__name__.startswith("Dummy"):
        raise NotCompiled(f"it starts from a {type(model.init_).__name__}, not from a constant")
    trees = [[_tree(stage.tree_, scale=model.learning_rate) for stage in stages] for stages in model.estimators_]
    return _boosted(model, trees, graph, matrix)


def _histogram_boosting(model: Any, graph: Graph, matrix: str) -> dict[str, str]:
    """Adds a HistGradientBoostingClassifier or -Regressor, which compare in FP64 without rounding."""
    trees = [[_histogram_tree(each.nodes) for each in stage] for stage in model._predictors]  # noqa: SLF001  # no public way
    return _boosted(model, trees, graph, matrix)


def _boosted(model: Any, stages: list[list[Tree]], graph: Graph, matrix: str) -> dict[str, str]:
    """Adds boosted trees: one sum for each class (for two classes, one), then softmax; or one sum for a regression."""
    classes = getattr(model, "classes_", None)
    sums = len(stages[0])
    outputs = 2 if classes is not None and sums == 1 else sums
    first = outputs - sums  # of two classes, the first always sums to 0
    trees = [replace(tree, output=first + i) for stage in stages for i, tree in enumerate(stage)]
    row = np.zeros(model.n_features_in_)
    alone = Forest(trees, outputs).sums(row)[first:]
    raw = model.decision_function(row[np.newaxis]) if classes is not None else model.predict(row[np.newaxis])
    if classes is None:
        link = "exp" if getattr(model, "loss", "") in {"poisson", "gamma"} else "none"
        base = (np.log(raw) if link == "exp" else raw) - alone
        return regressor_outputs(graph, Forest(trees, 1, base=base).add_to(graph, matrix), link, "FP64")
    if getattr(model, "loss", "") == "exponential":
        raise NotCompiled("its loss is exponential, whose probabilities are not a plain softmax")
    base = np.ravel(raw) - alone
    total = Forest(trees, outputs, base=two_class_base(base[0]) if first else base).add_to(graph, matrix)
    return classifier_outputs(graph, total, labels(classes), "softmax", "FP64")


def _one_target(model: Any) -> None:
    if getattr(model, "n_outputs_", 1) != 1:
        raise NotCompiled("it predicts several targets")


def _tree(tree: Any, *, shares: bool = False, scale: float = 1.0) -> Tree:
    """A tree of scikit-learn, which rounds values to FP32 before it compares them."""
    values = tree.value[:, 0, :]
    if shares:
        values = values / values.sum(axis=1, keepdims=True)
    return Tree(
        tree.feature,
        fp64_thresholds(tree.threshold),
        tree.children_left,
        tree.children_right,
        tree.missing_go_to_left.astype(bool),
        values * scale,
    )


def _histogram_tree(nodes: Array) -> Tree:
    if nodes["is_categorical"].any():
        raise NotCompiled("its trees split on categories")
    return Tree(
        nodes["feature_idx"].astype(int),
        nodes["num_threshold"],
        np.where(nodes["is_leaf"], -1, nodes["left"].astype(int)),
        nodes["right"].astype(int),
        nodes["missing_go_to_left"].astype(bool),
        nodes["value"].reshape(-1, 1),
    )


_TreeConverter = Callable[[Any, Graph, str], dict[str, str]]
_TREE_CONVERTERS: dict[str, _TreeConverter] = {
    "DecisionTreeClassifier": _forest_classifier,
    "DecisionTreeRegressor": _forest_regressor,
    "ExtraTreeClassifier": _forest_classifier,
    "ExtraTreeRegressor": _forest_regressor,
    "ExtraTreesClassifier": _forest_classifier,
    "ExtraTreesRegressor": _forest_regressor,
    "GradientBoostingClassifier": _boosting,
    "GradientBoostingRegressor": _boosting,
    "HistGradientBoostingClassifier": _histogram_boosting,
    "HistGradientBoostingRegressor": _histogram_boosting,
    "RandomForestClassifier": _forest_classifier,
    "RandomForestRegressor": _forest_regressor,
}
