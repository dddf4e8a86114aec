"""LightGBM, stored as its model text. NaN means missing, if the signature allows it.

Inputs: one numeric matrix, or several numeric columns taken side by side in the signature's order. Classifiers answer
"probability" [rows, classes] and "label" (the classes the wrapper was trained with, or class indices); other models
answer "prediction".
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

from treadle.core.errors import InvalidInput
from treadle.plugins.backend import Example, LoadedModel, ModelBackend, ModelSource
from treadle.plugins.backends._matrix import (
    assemble,
    check_numeric,
    check_width,
    example_rows,
    is_one_of,
    labels,
    two_columns,
)
from treadle.plugins.backends._signing import read_signed, sign
from treadle.plugins.backends.onnx_export.graph import Graph
from treadle.plugins.errors import BackendFault
from treadle.plugins.hookspecs import RegisterBackend, hookimpl
from treadle.plugins.tensors import Array, Tensors

FILE = "model.txt"
CLASSES = "classes.json"


class LightgbmBackend(ModelBackend):
    """`lightgbm.Booster` and the scikit-learn style wrappers around it."""

    name = "lightgbm"
    requires = ("lightgbm",)

    def can_save(self, model: Any) -> bool:
        return is_one_of(model, "lightgbm.Booster", "lightgbm.LGBMModel")

    def save(self, model: Any, folder: Path, sample: Tensors) -> None:
        booster = getattr(model, "booster_", model)
        if booster.pandas_categorical:
            raise InvalidInput("models with pandas categories are not supported; encode them as numbers first")
        booster.save_model(folder / FILE)
        sign(folder / FILE)
        classes = getattr(model, "classes_", None)
        if classes is not None:
            (folder / CLASSES).write_text(json.dumps(labels(classes).tolist()) + "\n")

    def load(self, source: ModelSource) -> LoadedModel:
        import lightgbm

        self.check_options(source.options)
        check_numeric(source.signature)
        data = read_signed(source.folder / FILE)
        try:
            text = data.decode()
            booster = lightgbm.Booster(model_str=text)
        except (lightgbm.basic.LightGBMError, ValueError, TypeError) as error:
            raise BackendFault(f"{FILE} cannot be loaded: {type(error).__name__}") from error
        check_width(source.signature, booster.num_feature())
        return _LightgbmModel(
            booster,
            tuple(spec.name for spec in source.signature.inputs),
            _objective(text),
            _classes(source.folder / CLASSES),
            source.threads,
        )

    def to_onnx(self, model: Any, sample: Tensors, source: ModelSource) -> bytes:
        graph = Graph(source.signature)
        matrix, _ = graph.matrix()
        return graph.finish(self.add_to_graph(model, graph, matrix))

    def add_to_graph(self, model: Any, graph: Graph, matrix: str) -> dict[str, str]:
        """Adds the model with the input `matrix` to a graph, and returns the graph values of its outputs by name."""
        from treadle.plugins.backends.onnx_export.boosters import lightgbm_outputs

        classes = getattr(model, "classes_", None)
        names = None if classes is None else labels(classes)
        return lightgbm_outputs(getattr(model, "booster_", model), names, graph, matrix)

    def example(self) -> Example:
        import lightgbm

        rows, classes = example_rows()
        settings = {"objective": "binary", "num_threads": 1, "verbose": -1, "min_data_in_leaf": 5}
        model = lightgbm.train(settings, lightgbm.Dataset(rows, classes), num_boost_round=5)
        return Example(
            model,
            {"features": rows[:8]},
            {"probability": two_columns(np.asarray(model.predict(rows[:8]))), "label": classes[:8]},
        )


class _LightgbmModel(LoadedModel):
    def __init__(
        self, booster: Any, inputs: tuple[str, ...], objective: str, classes: Array | None, threads: int
    ) -> None:
        self._booster = booster
        self._inputs = inputs
        self._binary = objective == "binary"
        self._multiclass = objective in {"multiclass", "multiclassova"}
        count = 2 if self._binary else booster.num_model_per_iteration()
        self._classes = np.arange(count) if classes is None else classes
        if (self._binary or self._multiclass) and len(self._classes) != count:
            raise BackendFault(f"{CLASSES} names {len(self._classes)} classes, the model has {count}")
        self._threads = threads

    def predict(self, inputs: Tensors) -> Tensors:
        matrix = assemble(self._inputs, inputs)
        scores = np.asarray(self._booster.predict(matrix, num_threads=self._threads))
        if self._binary:
            return {"probability": two_columns(scores), "label": self._classes[(scores > 0.5).astype(np.int64)]}
        if self._multiclass:
            return {"probability": scores, "label": self._classes[scores.argmax(axis=1)]}
        return {"prediction": scores}


@hookimpl
def treadle_model_backends(register: RegisterBackend) -> None:
    register(LightgbmBackend())


def _objective(text: str) -> str:
    for line in text.splitlines():
        if line.startswith("objective="):
            return line.removeprefix("objective=").split(" ")[0]
    return ""


def _classes(file: Path) -> Array | None:
    if not file.exists():
        return None
    try:
        return labels(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise BackendFault(f"{CLASSES} cannot be read: {type(error).__name__}") from error
