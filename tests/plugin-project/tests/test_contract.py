"""The backend under Treadle's conformance kit."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from treadle_centroid import FILE, CentroidBackend, CentroidModel

from treadle.core.errors import InvalidInput
from treadle.plugins.backend import ModelBackend
from treadle.plugins.manager import Plugins
from treadle.plugins.packaging import load_package, save_model
from treadle.plugins.tensors import Array, Tensors
from treadle.plugins.testing import BackendContract

ROWS = np.random.default_rng(0).normal(size=(90, 3))
LABELS = np.arange(90) % 3


class TestCentroid(BackendContract):
    def backend(self) -> ModelBackend:
        return CentroidBackend()


class TestCentroidOfWords(BackendContract):
    """Another model than the backend's example: its classes are words."""

    def backend(self) -> ModelBackend:
        return CentroidBackend()

    def model(self) -> Any:
        return CentroidModel.fit(ROWS, np.array(["late", "early", "on time"])[LABELS])

    def sample(self) -> dict[str, Array]:
        return {"features": ROWS[:8].astype(np.float32)}

    def expected(self, model: Any, inputs: Tensors) -> dict[str, Array]:
        return {"probability": model.probabilities(inputs["features"])}


def test_is_installed() -> None:
    assert isinstance(Plugins.load().backend("centroid"), CentroidBackend)


def test_save_and_load(tmp_path: Path) -> None:
    save_model(CentroidModel.fit(ROWS, LABELS), tmp_path / "model", {"features": ROWS[:5]})
    assert (tmp_path / "model" / FILE).exists()
    assert load_package(tmp_path / "model").predict({"features": ROWS[:2]})["label"].shape == (2,)


def test_refuses_another_width(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="shape"):
        save_model(CentroidModel.fit(ROWS, LABELS), tmp_path / "model", {"features": ROWS[:5, :2]})
