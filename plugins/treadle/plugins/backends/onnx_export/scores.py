"""Graph nodes from sums of trees to the outputs of models: probabilities, labels, predictions."""

from typing import Any

import numpy as np

from treadle.plugins.backends.onnx_export.graph import Graph
from treadle.plugins.tensors import Array


def classifier_outputs(graph: Graph, sums: str, classes: Array, link: str, dtype: str) -> dict[str, str]:
    """ "probability" and "label" from one sum for each class.

    `link`: "softmax", "sigmoid" (of each class by itself), or "none" where the sums are probabilities. `dtype`: the
    precision of the link.
    """
    exact = graph.cast(sums, dtype)
    if link == "softmax":
        probability = graph.add("Softmax", exact, axis=1)
    elif link == "sigmoid":
        probability = graph.add("Sigmoid", exact)
    else:
        probability = exact
    return {"probability": probability, "label": label_node(graph, probability, classes)}


def label_node(graph: Graph, probability: str, classes: Array) -> str:
    """Adds the class of the highest probability, the first one of equals."""
    return graph.add("Gather", graph.constant(classes), graph.add("ArgMax", probability, axis=1, keepdims=0))


def regressor_outputs(graph: Graph, sums: str, link: str, dtype: str) -> dict[str, str]:
    """ "prediction" [rows] from one sum. `link`: "none", "exp" or "sigmoid"."""
    value = graph.cast(graph.add("Reshape", sums, graph.constant([-1])), dtype)
    if link != "none":
        value = graph.add({"exp": "Exp", "sigmoid": "Sigmoid"}[link], value)
    return {"prediction": value}


def two_class_base(base: Any) -> Array:
    """The bases of two classes, 0 for the first: the softmax of the two sums is then the sigmoid of the second."""
    return np.array([0.0, float(base)])
