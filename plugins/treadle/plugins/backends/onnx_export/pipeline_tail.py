"""Pipelines of scikit-learn that end in a model of XGBoost or LightGBM.

skops does not trust boosters, whose parsers trust their input. So skops stores the steps before, and the backend of the
booster stores the last step in its own folder.
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
    """The backend of the last step of a pipeline, if that is a model of XGBoost or LightGBM after other steps."""
    if not is_one_of(model, "sklearn.Pipeline") or len(model.steps) < 2:
        return None
    return next((kind() for kind in _BOOSTERS if kind().can_save(model.steps[-1][1])), None)


def save_last(booster: Booster, model: Any, folder: Path, sample: Tensors) -> None:
    """Stores the last step of a pipeline in the folder of its backend."""
    _transform_dense(model[:-1], assemble(tuple(sample), sample))
    (folder / booster.name).mkdir()
    booster.save(model.steps[-1][1], folder / booster.name, sample)


def load_last(source: ModelSource) -> LoadedModel | None:
    """The last step, if it has a folder; its input is the output of the steps before."""
    for kind in _BOOSTERS:
        folder = source.folder / kind.name
        if folder.is_dir():
            return kind().load(ModelSource(folder, Signature((_MATRIX,), ()), {}, source.threads))
    return None


class PipelineTail(LoadedModel):
    """A pipeline whose last step is a booster: steps of scikit-learn, then the model of another backend."""

    def __init__(self, steps: Any, last: LoadedModel, inputs: tuple[str, ...]) -> None:
        self._steps = steps
        self._last = last
        self._inputs = inputs

    def predict(self, inputs: Tensors) -> Tensors:
        return self._last.predict({_MATRIX.name: _transform_dense(self._steps, assemble(self._inputs, inputs))})

    def close(self) -> None:
        self._last.close()


def _transform_dense(steps: Any, matrix: Array) -> Array:
    """The output of the steps. InvalidInput if it is a sparse matrix."""
    values = steps.transform(matrix)
    if hasattr(values, "toarray"):
        raise InvalidInput("its steps give a sparse matrix, of which boosters take zeros for missing; make it dense")
    return np.asarray(values)
