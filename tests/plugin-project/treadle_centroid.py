"""Nearest-centroid classifiers for Treadle, stored as numpy arrays without pickle."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from treadle.core.errors import InvalidInput
from treadle.plugins.backend import Example, LoadedModel, ModelBackend, ModelSource
from treadle.plugins.errors import BackendFault
from treadle.plugins.hookspecs import RegisterBackend, hookimpl
from treadle.plugins.tensors import Array, Tensors

FILE = "model.npz"


@dataclass(frozen=True)
class CentroidModel:
    """The framework: a class is the mean of its rows. Put yours in its place."""

    centroids: Array
    """[classes, features]"""
    classes: Array

    @classmethod
    def fit(cls, rows: Array, labels: Array) -> Self:
        classes = np.unique(labels)
        return cls(np.stack([rows[labels == label].mean(axis=0) for label in classes]), classes)

    def probabilities(self, rows: Array) -> Array:
        """[rows, classes]: the nearer, the likelier."""
        nearness = -np.square(rows[:, np.newaxis, :] - self.centroids).sum(axis=2)
        shifted = np.exp(nearness - nearness.max(axis=1, keepdims=True))
        return np.asarray(shifted / shifted.sum(axis=1, keepdims=True))


class CentroidBackend(ModelBackend):
    """Saves and loads them."""

    name = "centroid"

    def can_save(self, model: Any) -> bool:
        return isinstance(model, CentroidModel)

    def save(self, model: Any, folder: Path, sample: Tensors) -> None:
        np.savez(folder / FILE, allow_pickle=False, centroids=model.centroids, classes=model.classes)

    def load(self, source: ModelSource) -> LoadedModel:
        self.check_options(source.options)
        try:
            with np.load(source.folder / FILE, allow_pickle=False) as arrays:
                model = CentroidModel(arrays["centroids"], arrays["classes"])
        except Exception as error:  # a damaged file may raise almost anything
            raise BackendFault(f"{FILE} cannot be loaded: {type(error).__name__}") from error
        (only, *others) = source.signature.inputs
        if others or only.shape != (-1, model.centroids.shape[1]):
            raise InvalidInput(f"the model takes one input of shape [-1, {model.centroids.shape[1]}]")
        return _Loaded(model, only.name)

    def example(self) -> Example:
        rows = np.random.default_rng(0).normal(size=(90, 3))
        model = CentroidModel.fit(rows, np.arange(90) % 3)
        return Example(model, {"features": rows[:8]}, {"probability": model.probabilities(rows[:8])})


class _Loaded(LoadedModel):
    def __init__(self, model: CentroidModel, name: str) -> None:
        self._model, self._name = model, name
        # Text travels as an array of objects.
        self._classes = model.classes.astype(object) if model.classes.dtype.kind == "U" else model.classes

    def predict(self, inputs: Tensors) -> Tensors:
        probability = self._model.probabilities(inputs[self._name])
        return {"probability": probability, "label": self._classes[probability.argmax(axis=1)]}


@hookimpl
def treadle_model_backends(register: RegisterBackend) -> None:
    register(CentroidBackend())
