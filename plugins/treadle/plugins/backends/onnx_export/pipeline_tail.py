"""Pipelines of scikit-learn that end in a model of XGBoost or LightGBM.

skops does not vouch for boosters, whose readers trust their input. So the steps before are stored by skops, and the
last one in a folder of its own, as its own backend stores it.
"""

from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from treadle.core.errors import InvalidInput
from treadle.plugins.backend import LoadedModel, ModelSource
from treadle.plugins.backends._matrix import assemble, is_one_of
from treadle.plugins.backends.lightgbm import LightgbmBackend
from treadle.plugins.backends.xgboost import XgboostBackend
from treadle.plugins.tensor_spec import TensorSpec
from treadle.plugins.tensors import Array, Signature, Tensors

Booster: TypeAlias = XgboostBackend | LightgbmBackend
_BOOSTERS: tuple[type[Booster], ...] = (XgboostBackend, LightgbmBackend)
_MATRIX = TensorSpec("matrix", "FP64", (-1, -1), allow_nan=True)


def booster_of(model: Any) -> Booster | None:
    """What stores the last step of a pipeline, if that is a model of XGBoost or LightGBM behind other steps."""
    if not is_one_of(model, "sklearn.Pipeline") or len(model.steps) < 2:
        return None
    return next((kind() for kind in _BOOSTERS if kind().can_save(model.steps[-1][1])), None)


def save_last(booster: Booster, model: Any, folder: Path, sample: Tensors) -> None:
    """Stores the last step."""
    _transformed(model[:-1], assemble(tuple(sample), sample))
    (folder / booster.name).mkdir()
    booster.save(model.steps[-1][1], folder / booster.name, sample)


def load_last(source: ModelSource) -> LoadedModel | None:
    """The last step, if it lies in a folder of its own; its one input is what the steps before make."""
    for kind in _BOOSTERS:
        folder = source.folder / kind.name
        if folder.is_dir():
            return kind().load(ModelSource(folder, Signature((_MATRIX,), ()), {}, source.threads))
    return None


class Chain(LoadedModel):
    """Steps of scikit-learn, and the model that takes what they make."""

    def __init__(self, steps: Any, last: LoadedModel, inputs: tuple[str, ...]) -> None:
        self._steps = steps
        self._last = last
        self._inputs = inputs

    def predict(self, inputs: Tensors) -> Tensors:
        return self._last.predict({_MATRIX.name: _transformed(self._steps, assemble(self._inputs, inputs))})

    def close(self) -> None:
        self._last.close()


def _transformed(steps: Any, matrix: Array) -> Array:
    """InvalidInput for steps that give a sparse matrix."""
    values = steps.transform(matrix)
    if hasattr(values, "toarray"):
        raise InvalidInput("its steps give a sparse matrix, of which boosters take zeros for missing; make it dense")
    return np.asarray(values)
