"""scikit-learn models, stored with skops: no pickle, and only trusted types.

Inputs: one numeric matrix, or several numeric columns taken side by side in the signature's order. Classifiers answer
"label" and, if they have predict_proba, "probability"; other estimators answer "prediction".
"""

import threading
from pathlib import Path
from typing import Any

import numpy as np

from treadle.core.errors import InvalidInput
from treadle.plugins.backend import Example, LoadedModel, ModelBackend, ModelSource
from treadle.plugins.backends._matrix import assemble, check_numeric, check_width, example_rows, labels
from treadle.plugins.errors import BackendFault
from treadle.plugins.hookspecs import RegisterBackend, hookimpl
from treadle.plugins.tensors import Array, Tensors

FILE = "model.skops"

# Fitted parts of scikit-learn's own estimators that skops does not trust yet: types that hold arrays and numbers, run
# no code while they are constructed, and hold no callable.
_TRUSTED = frozenset(
    {
        "numpy.dtype",
        "sklearn._loss.loss.HalfTweedieLoss",
        "sklearn._loss.loss.HalfTweedieLossIdentity",
        "sklearn.calibration._CalibratedClassifier",
        "sklearn.calibration._SigmoidCalibration",
        "sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor",
        "sklearn.gaussian_process._gpc._BinaryGaussianProcessClassifierLaplace",
        "sklearn.gaussian_process.kernels.ConstantKernel",
        "sklearn.gaussian_process.kernels.Matern",
        "sklearn.gaussian_process.kernels.Product",
        "sklearn.gaussian_process.kernels.RBF",
        "sklearn.gaussian_process.kernels.Sum",
        "sklearn.gaussian_process.kernels.WhiteKernel",
        "sklearn.metrics._dist_metrics.EuclideanDistance64",
        "sklearn.metrics._dist_metrics.ManhattanDistance64",
        "sklearn.metrics._dist_metrics.MinkowskiDistance64",
        "sklearn.neighbors._ball_tree.BallTree",
        "sklearn.neighbors._kd_tree.KDTree",
        "sklearn.neural_network._stochastic_optimizers.AdamOptimizer",
        "sklearn.neural_network._stochastic_optimizers.SGDOptimizer",
        "sklearn.tree._tree.Tree",
    }
)

# Classifiers whose predict() is the class of the highest predict_proba(), so that the label needs no second pass.
_ARGMAX = frozenset(
    {
        "DecisionTreeClassifier",
        "ExtraTreeClassifier",
        "ExtraTreesClassifier",
        "LogisticRegression",
        "MLPClassifier",
        "RandomForestClassifier",
    }
)


class SklearnBackend(ModelBackend):
    """Estimators and pipelines of scikit-learn."""

    name = "sklearn"
    requires = ("sklearn", "skops")

    def can_save(self, model: Any) -> bool:
        return type(model).__module__.partition(".")[0] == "sklearn" and hasattr(model, "predict")

    def save(self, model: Any, folder: Path, sample: Tensors) -> None:
        import skops.io

        from treadle.plugins.backends.onnx_export.pipeline_tail import booster_of, save_last

        booster = booster_of(model)
        if booster is not None:
            save_last(booster, model, folder, sample)
            model = model[:-1]
        file = folder / FILE
        try:
            skops.io.dump(model, file)
        except Exception as error:
            raise InvalidInput(f"skops cannot store this {type(model).__name__}: {error}") from error
        unsafe = _untrusted(file)
        if unsafe:
            file.unlink()
            raise InvalidInput(
                f"this {type(model).__name__} holds {', '.join(unsafe)}: code of its own, which the sklearn backend "
                "never loads; use scikit-learn's own parts, or convert it to ONNX"
            )

    def load(self, source: ModelSource) -> LoadedModel:
        from treadle.plugins.backends.onnx_export.pipeline_tail import PipelineTail, load_last

        self.check_options(source.options)
        check_numeric(source.signature)
        estimator = _read(source.folder / FILE)
        features = getattr(estimator, "n_features_in_", None)
        if features is not None:
            check_width(source.signature, features)
        _check_order(estimator, source.signature.columns())
        _drop_feature_names(estimator)
        _limit_jobs(estimator, source.threads)
        inputs = tuple(spec.name for spec in source.signature.inputs)
        last = load_last(source)
        return (
            _SklearnModel(estimator, inputs, source.threads) if last is None else PipelineTail(estimator, last, inputs)
        )

    def to_onnx(self, model: Any, sample: Tensors, source: ModelSource) -> bytes:
        from treadle.plugins.backends.onnx_export.sklearn import to_onnx

        return to_onnx(model, sample, source.signature)

    def example(self) -> Example:
        from sklearn.linear_model import LogisticRegression

        rows, classes = example_rows()
        model = LogisticRegression().fit(rows, classes)
        return Example(
            model, {"features": rows[:8]}, {"probability": model.predict_proba(rows[:8]), "label": classes[:8]}
        )


class _SklearnModel(LoadedModel):
    def __init__(self, estimator: Any, inputs: tuple[str, ...], threads: int) -> None:
        from sklearn.base import is_classifier
        from threadpoolctl import ThreadpoolController  # type: ignore[import-untyped]  # it ships no types

        self._estimator = estimator
        self._inputs = inputs
        self._threads = threads
        self._pools = ThreadpoolController()
        self._limited = threading.local()
        self._classes = labels(estimator.classes_) if is_classifier(estimator) else None
        self._probable = self._classes is not None and hasattr(estimator, "predict_proba")
        last = estimator.steps[-1][1] if hasattr(estimator, "steps") else estimator
        self._argmax = type(last).__name__ in _ARGMAX and type(last).__module__.startswith("sklearn.")

    def predict(self, inputs: Tensors) -> Tensors:
        self._limit_threads()
        matrix = assemble(self._inputs, inputs)
        if self._classes is None:
            return {"prediction": np.asarray(self._estimator.predict(matrix))}
        if not self._probable:
            return {"label": labels(self._estimator.predict(matrix))}
        probability = self._estimator.predict_proba(matrix)
        if self._argmax:
            label: Array = self._classes[probability.argmax(axis=1)]
        else:
            label = labels(self._estimator.predict(matrix))
        return {"probability": probability, "label": label}

    def _limit_threads(self) -> None:
        # OpenMP has a limit for each calling thread, so it is set once in each thread that predicts. BLAS has one limit
        # for the process: that of the last model.
        if not getattr(self._limited, "done", False):
            self._pools.limit(limits=self._threads)
            self._limited.done = True


@hookimpl
def treadle_model_backends(register: RegisterBackend) -> None:
    register(SklearnBackend())


def _untrusted(file: Path) -> list[str]:
    import skops.io

    return sorted(set(skops.io.get_untrusted_types(file=file)) - _TRUSTED)


def _read(file: Path) -> Any:
    import skops.io

    try:
        unsafe = _untrusted(file)
    except Exception as error:
        raise BackendFault(f"{FILE} cannot be read: {type(error).__name__}") from error
    if unsafe:
        raise InvalidInput(f"{FILE} holds types that are not trusted: {', '.join(unsafe)}")
    try:
        return skops.io.load(file, trusted=sorted(_TRUSTED))
    except Exception as error:
        raise BackendFault(f"{FILE} cannot be loaded: {type(error).__name__}") from error


def _parts(estimator: Any) -> list[Any]:
    """The estimator and its nested estimators."""
    nested = estimator.get_params(deep=True).values() if hasattr(estimator, "get_params") else ()
    return [estimator, *(part for part in nested if hasattr(part, "get_params"))]


def _drop_feature_names(estimator: Any) -> None:
    # A model that was trained on a data frame warns at every matrix. The order of columns is checked at load.
    for part in _parts(estimator):
        vars(part).pop("feature_names_in_", None)


def _limit_jobs(estimator: Any, threads: int) -> None:
    for part in _parts(estimator):
        if "n_jobs" in part.get_params(deep=False):
            part.set_params(n_jobs=threads)


def _check_order(estimator: Any, columns: list[str]) -> None:
    """Raises InvalidInput if the model was trained on the same columns in another order."""
    trained = list(getattr(estimator, "feature_names_in_", ()))
    if trained != columns and sorted(trained) == sorted(columns):
        raise InvalidInput("the signature lists the model's columns in another order than it was trained with")
