"""Every built-in backend under the kit that outside authors inherit; other kinds of models are in test_backends."""

import importlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from treadle.plugins.backend import ModelBackend
from treadle.plugins.backends.lightgbm import LightgbmBackend
from treadle.plugins.backends.onnx import OnnxBackend
from treadle.plugins.backends.python import PythonBackend
from treadle.plugins.backends.sklearn import SklearnBackend
from treadle.plugins.backends.torch import TorchBackend
from treadle.plugins.backends.xgboost import XgboostBackend
from treadle.plugins.tensors import Tensors
from treadle.plugins.testing import BackendContract

RNG = np.random.default_rng(7)
ROWS = RNG.normal(size=(120, 4))
CLASS = (ROWS[:, 0] + 0.5 * ROWS[:, 1] > 0).astype(np.int64)
WORD = np.array(["late" if late else "on time" for late in CLASS], dtype=object)
WITH_GAPS = np.where(RNG.random(ROWS.shape) < 0.1, np.nan, ROWS).astype(np.float32)


class TestSklearnForest(BackendContract):
    def backend(self) -> ModelBackend:
        return SklearnBackend()

    def model(self) -> Any:
        from sklearn.ensemble import RandomForestClassifier

        return RandomForestClassifier(10, random_state=0).fit(ROWS, WORD)

    def sample(self) -> Mapping[str, Any]:
        return {"features": ROWS[:9]}

    def expected(self, model: Any, inputs: Tensors) -> Mapping[str, Any]:
        rows = inputs["features"]
        return {"probability": model.predict_proba(rows), "label": model.predict(rows)}


class TestOnnx(BackendContract):
    """A converted forest; the reference is scikit-learn itself, in single precision."""

    relative_tolerance = 1e-4
    absolute_tolerance = 1e-5

    def backend(self) -> ModelBackend:
        return OnnxBackend()

    def forest(self) -> Any:
        from sklearn.linear_model import LogisticRegression

        return LogisticRegression().fit(ROWS.astype(np.float32), CLASS)

    def model(self) -> Any:
        from skl2onnx import to_onnx

        return to_onnx(self.forest(), ROWS[:1].astype(np.float32), options={"zipmap": False})

    def sample(self) -> Mapping[str, Any]:
        return {"X": ROWS[:8].astype(np.float32)}

    def expected(self, model: Any, inputs: Tensors) -> Mapping[str, Any]:
        original = self.forest()
        return {"probability": original.predict_proba(inputs["X"]), "label": original.predict(inputs["X"])}


class TestXgboostClassifier(BackendContract):
    def backend(self) -> ModelBackend:
        return XgboostBackend()

    def model(self) -> Any:
        from xgboost import XGBClassifier

        return XGBClassifier(n_estimators=8, max_depth=3, n_jobs=1).fit(WITH_GAPS, CLASS)

    def sample(self) -> Mapping[str, Any]:
        return {"features": ROWS[:8].astype(np.float32)}

    def expected(self, model: Any, inputs: Tensors) -> Mapping[str, Any]:
        rows = inputs["features"]
        return {"probability": model.predict_proba(rows), "label": model.predict(rows).astype(np.int64)}


class TestLightgbmClassifier(BackendContract):
    def backend(self) -> ModelBackend:
        return LightgbmBackend()

    def model(self) -> Any:
        from lightgbm import LGBMClassifier

        return LGBMClassifier(n_estimators=8, n_jobs=1, verbose=-1).fit(WITH_GAPS, WORD)

    def sample(self) -> Mapping[str, Any]:
        return {"features": ROWS[:8].astype(np.float32)}

    def expected(self, model: Any, inputs: Tensors) -> Mapping[str, Any]:
        rows = inputs["features"]
        return {
            "probability": model.booster_.predict(rows)[:, np.newaxis] * [[-1, 1]] + [[1, 0]],
            "label": model.classes_[(model.booster_.predict(rows) > 0.5).astype(int)],
        }


class TestTorch(BackendContract):
    """Two inputs, normalisation, dropout, a constant: what real networks have."""

    relative_tolerance = 1e-4

    def backend(self) -> ModelBackend:
        return TorchBackend()

    def model(self) -> Any:
        import torch

        class Network(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.carriers = torch.nn.Embedding(5, 3)
                self.layers = torch.nn.Sequential(
                    torch.nn.Linear(7, 8), torch.nn.BatchNorm1d(8), torch.nn.GELU(), torch.nn.Dropout(0.2)
                )
                self.head = torch.nn.Linear(8, 2)
                self.scale = torch.tensor([1.0, 2.0])

            def forward(self, features: torch.Tensor, carrier: torch.Tensor) -> dict[str, torch.Tensor]:
                joined = torch.cat([features, self.carriers(carrier)], dim=1)
                probability = (self.head(self.layers(joined)) * self.scale).softmax(dim=1)
                return {"probability": probability, "label": probability.argmax(dim=1)}

        torch.manual_seed(0)
        return Network()

    def sample(self) -> Mapping[str, Any]:
        return {"features": ROWS[:8].astype(np.float32), "carrier": np.arange(8) % 5}

    def expected(self, model: Any, inputs: Tensors) -> Mapping[str, Any]:
        import torch

        assert model.training, "saving must not change the mode of the author's model"
        model.eval()
        with torch.inference_mode():
            answer = model(*(torch.from_numpy(array.copy()) for array in inputs.values()))
        model.train()
        return {name: value.numpy() for name, value in answer.items()}


class TestPython(BackendContract):
    def backend(self) -> ModelBackend:
        return PythonBackend()

    def model(self) -> Any:
        return importlib.import_module("heuristics").always_on_time

    def sample(self) -> Mapping[str, Any]:
        return {"delay": np.array([0.0, 14.0, 16.0, 90.0])}

    def expected(self, model: Any, inputs: Tensors) -> Mapping[str, Any]:
        return {**model(inputs), "label": np.array(["on time", "on time", "late", "late"], dtype=object)}
