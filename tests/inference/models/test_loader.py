"""The form of a model that is loaded: the compiled one if it reproduces the sample, else the original."""

import shutil
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from structlog import wrap_logger
from structlog.testing import CapturingLogger

from treadle.core.errors import DataLoss, InvalidInput
from treadle.inference.batching.model_thread import ModelThread
from treadle.inference.models.artifacts import ArtifactCache
from treadle.inference.models.loader import LoadOptions, ModelLoader
from treadle.inference.models.models import RegisteredVersion
from treadle.inference.service import InferenceSettings
from treadle.plugins.checked import CheckedModel
from treadle.plugins.manager import Plugins
from treadle.plugins.packaging import read_package, save_model
from treadle.v1 import registry_pb2, types_pb2

ROWS = np.random.default_rng(2).normal(size=(200, 3))
HOW = LoadOptions(threads=1, largest_batch=64, limit_seconds=60, tolerance=1e-4, compiled=True)


@pytest.fixture(scope="module")
def packaged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A forest, whose ONNX form is hundreds of times as fast."""
    from sklearn.ensemble import RandomForestClassifier

    folder = tmp_path_factory.mktemp("forest") / "model"
    model = RandomForestClassifier(100, random_state=0).fit(ROWS, ROWS[:, 0] > 0)
    assert save_model(model, folder, {"features": ROWS[:20]}).compiled.backend == "onnx"
    return folder


@pytest.fixture
def folder(packaged: Path, tmp_path: Path) -> Path:
    """A copy of the package that the test may change."""
    return Path(shutil.copytree(packaged, tmp_path / "package"))


class Loads:
    """Loads a package as the inference service does, and records log events."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self.logged = CapturingLogger()

    async def load(
        self, package: Path, options: LoadOptions = HOW, *, plugins: Plugins | None = None, **changes: Any
    ) -> CheckedModel:
        manifest = read_package(package)
        for name, value in changes.items():
            setattr(manifest.compiled, name, value)
        version = registry_pb2.ModelVersion(ref=types_pb2.ModelRef(model="forest", version=1), manifest=manifest)
        paths = {file.sha256: package / file.path for file in manifest.files}

        async def fetch(sha256: str) -> AsyncIterator[bytes]:
            yield paths[sha256].read_bytes()

        log = wrap_logger(self.logged, processors=[lambda logger, name, event: ((), event)])
        loader = ModelLoader(plugins or Plugins.load(), ArtifactCache(self._home, fetch), options, log)
        worker = ModelThread("model")
        try:
            return await loader.load(RegisteredVersion.from_proto(version), worker)
        finally:
            worker.stop()

    @property
    def events(self) -> list[dict[str, Any]]:
        return [call.kwargs for call in self.logged.calls]

    @property
    def served_by(self) -> str:
        return str(self.events[-1]["by"])


@pytest.fixture
def loads(tmp_path: Path) -> Loads:
    return Loads(tmp_path / "home")


async def test_the_compiled_form_serves(loads: Loads, packaged: Path) -> None:
    fast = await loads.load(packaged)
    assert loads.served_by == "onnx"
    original = await loads.load(packaged, replace(HOW, compiled=False))
    assert loads.served_by == "sklearn"
    answers = [model.predict({"features": ROWS}, 200) for model in (fast, original)]
    assert np.allclose(answers[0]["probability"], answers[1]["probability"], atol=1e-6)
    assert answers[0]["label"].tolist() == answers[1]["label"].tolist()


async def test_the_log_says_how_many_threads_and_why(loads: Loads, packaged: Path) -> None:
    await loads.load(packaged, replace(HOW, threads=2))
    assert {"threads": 2, "because": "as set"}.items() <= loads.events[-1].items()
    await loads.load(packaged, replace(HOW, threads=0))
    assert loads.events[-1]["threads"] >= 1
    assert loads.events[-1]["because"]


async def test_a_compiled_form_with_other_outputs_is_not_used(loads: Loads, folder: Path) -> None:
    from sklearn.ensemble import RandomForestClassifier

    other = RandomForestClassifier(100, random_state=1).fit(ROWS, ROWS[:, 1] > 0)
    save_model(other, folder.parent / "other", {"features": ROWS[:20]})
    shutil.copy(folder.parent / "other" / "compiled" / "model.onnx", folder / "compiled" / "model.onnx")
    await loads.load(folder, replace(HOW, tolerance=1.0))  # the original's: the compiled form has its own, recorded
    assert loads.served_by == "sklearn"
    (warning,) = [event for event in loads.events if "reason" in event]
    assert warning["event"] == "the compiled form is not used, the original is"
    assert "differs from what the model answered when it was made" in warning["reason"]


async def test_a_compiled_form_that_cannot_be_read_is_not_used(loads: Loads, folder: Path) -> None:
    (folder / "compiled" / "model.onnx").write_bytes(b"no model")
    await loads.load(folder)
    assert loads.served_by == "sklearn"


async def test_without_onnx_runtime_the_original_serves(loads: Loads, packaged: Path) -> None:
    await loads.load(packaged, plugins=Plugins.load(blocked=["onnx"]))
    assert loads.served_by == "sklearn"
    assert "plugin 'onnx' cannot be used" in loads.events[0]["reason"]


async def test_a_file_without_its_digest_is_refused_in_either_form(loads: Loads, folder: Path) -> None:
    manifest = read_package(folder)
    assert {file.path for file in manifest.files} == {"compiled/model.onnx", "model.skops"}
    for file in manifest.files:
        version = registry_pb2.ModelVersion(ref=types_pb2.ModelRef(model="forest", version=1), manifest=manifest)

        async def fetch(sha256: str, spoilt: str = file.sha256, folder: Path = folder) -> AsyncIterator[bytes]:
            (path,) = [each.path for each in manifest.files if each.sha256 == sha256]
            data = (folder / path).read_bytes()
            yield data[:-1] + b"!" if sha256 == spoilt else data

        artifacts = ArtifactCache(folder.parent / file.sha256[:8], fetch)
        loader = ModelLoader(Plugins.load(), artifacts, HOW, wrap_logger(loads.logged))
        worker = ModelThread("model")
        with pytest.raises(DataLoss, match="does not have the size and SHA-256"):
            await loader.load(RegisteredVersion.from_proto(version), worker)
        worker.stop()
    assert not loads.logged.calls


@pytest.mark.parametrize("where", ["", "..", "/etc", "elsewhere", "comp"])
async def test_a_compiled_form_outside_of_the_package_is_refused(loads: Loads, packaged: Path, where: str) -> None:
    with pytest.raises(InvalidInput, match="where it has no file"):
        await loads.load(packaged, folder=where)


def test_threads_are_measured_unless_they_are_set() -> None:
    assert InferenceSettings().threads_per_model == 0
    with pytest.raises(InvalidInput, match="threads_per_model must be a whole number, 0 to"):
        InferenceSettings(threads_per_model=-1)
