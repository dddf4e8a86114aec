"""XGBoost, stored as UBJ. NaN means missing, if the signature allows it.

Inputs: one numeric matrix, or several numeric columns taken side by side in the signature's order. Classifiers answer
"probability" [rows, classes] and "label" (class indices, INT64); other models answer "prediction".
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

from treadle.core.errors import InvalidInput
from treadle.plugins.backend import Example, LoadedModel, ModelBackend, ModelSource
from treadle.plugins.backends._matrix import assemble, check_numeric, check_width, example_rows, is_one_of, two_columns
from treadle.plugins.backends._signing import read_signed, sign
from treadle.plugins.backends.onnx_export.graph import Graph
from treadle.plugins.errors import BackendFault
from treadle.plugins.hookspecs import RegisterBackend, hookimpl
from treadle.plugins.tensors import Array, Tensors

FILE = "model.ubj"


class XgboostBackend(ModelBackend):
    """`xgboost.Booster` and the scikit-learn style wrappers around it."""

    name = "xgboost"
    requires = ("xgboost",)

    def can_save(self, model: Any) -> bool:
        return is_one_of(model, "xgboost.Booster", "xgboost.XGBModel")

    def save(self, model: Any, folder: Path, sample: Tensors) -> None:
        booster = _booster(model)
        if booster.feature_types and "c" in booster.feature_types:
            raise InvalidInput("models with categorical features are not supported; encode them as numbers first")
        booster.save_model(folder / FILE)
        sign(folder / FILE)

    def load(self, source: ModelSource) -> LoadedModel:
        import xgboost

        self.check_options(source.options)
        check_numeric(source.signature)
        data = read_signed(source.folder / FILE)
        booster = xgboost.Booster({"nthread": source.threads})
        try:
            booster.load_model(bytearray(data))
            booster.set_param({"nthread": source.threads})
            learner = json.loads(booster.save_config())["learner"]
        except (xgboost.core.XGBoostError, ValueError, KeyError, OSError) as error:
            raise BackendFault(f"{FILE} cannot be loaded: {type(error).__name__}") from error
        check_width(source.signature, booster.num_features())
        return _XgboostModel(
            booster, tuple(spec.name for spec in source.signature.inputs), learner["objective"]["name"]
        )

    def to_onnx(self, model: Any, sample: Tensors, source: ModelSource) -> bytes:
        graph = Graph(source.signature)
        matrix, _ = graph.matrix()
        return graph.finish(self.add_to_graph(model, graph, matrix))

    def add_to_graph(self, model: Any, graph: Graph, matrix: str) -> dict[str, str]:
        """Adds the model with the input `matrix` to a graph, and returns the graph values of its outputs by name."""
        from treadle.plugins.backends.onnx_export.boosters import xgboost_outputs

        return xgboost_outputs(_booster(model), graph, matrix)

    def example(self) -> Example:
        import xgboost

        rows, classes = example_rows()
        model = xgboost.XGBClassifier(n_estimators=5, max_depth=2, n_jobs=1).fit(rows, classes)
        return Example(
            model, {"features": rows[:8]}, {"probability": model.predict_proba(rows[:8]), "label": classes[:8]}
        )


class _XgboostModel(LoadedModel):
    def __init__(self, booster: Any, inputs: tuple[str, ...], objective: str) -> None:
        self._booster = booster
        self._inputs = inputs
        self._binary = objective == "binary:logistic"
        self._multiclass = objective.startswith("multi:")
        best = booster.attr("best_iteration")
        # After early stopping, the scikit-learn wrappers leave out the trees after the best round; so does this.
        self._rounds = (0, int(best) + 1) if best is not None else (0, 0)

    def predict(self, inputs: Tensors) -> Tensors:
        matrix = assemble(self._inputs, inputs)
        if self._multiclass:
            probability = _softmax(self._scores(matrix, "margin"))
            return {"probability": probability, "label": probability.argmax(axis=1)}
        scores = self._scores(matrix, "value")
        if self._binary:
            return {"probability": two_columns(scores), "label": (scores > 0.5).astype(np.int64)}
        return {"prediction": scores}

    def _scores(self, matrix: Array, kind: str) -> Array:
        return np.asarray(
            self._booster.inplace_predict(
                matrix, iteration_range=self._rounds, predict_type=kind, missing=np.nan, validate_features=False
            )
        )


@hookimpl
def treadle_model_backends(register: RegisterBackend) -> None:
    register(XgboostBackend())


def _booster(model: Any) -> Any:
    return model.get_booster() if hasattr(model, "get_booster") else model


def _softmax(margins: Array) -> Array:
    shifted = np.exp(margins - margins.max(axis=1, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=1, keepdims=True))
