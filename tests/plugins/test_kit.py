"""The kit itself: it passes what is sound and fails what is not."""

import importlib
import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from treadle.core.errors import InvalidInput
from treadle.plugins.backend import LoadedModel, ModelBackend
from treadle.plugins.backends.python import PythonBackend, echo
from treadle.plugins.metrics import Metric
from treadle.plugins.packaging import save_model
from treadle.plugins.stores import OnlineStore, OnlineStoreKind, ViewStats, WriteCount
from treadle.plugins.tensors import Array, Tensors
from treadle.plugins.testing import BackendContract, MetricContract, OnlineStoreContract
from treadle.plugins.testing._backend import _is_pickle, _pickles, load_in_fresh_process


class MemoryStore(OnlineStore):
    """Dicts under a lock: the least that keeps the contract."""

    def __init__(self) -> None:
        self._views: dict[str, dict[bytes, tuple[int, bytes]]] = {}
        self._lock = threading.Lock()
        self._writes: dict[str, int] = {}

    def write(self, view: str, rows: Iterable[tuple[bytes, int, bytes]]) -> WriteCount:
        waiting = list(rows)
        written = outdated = 0
        with self._lock:
            kept = self._views.setdefault(view, {})
            for key, at, value in waiting:
                if key in kept and kept[key][0] > at:
                    outdated += 1
                else:
                    kept[key] = (at, value)
                    written += 1
            self._writes[view] = self._writes.get(view, 0) + 1
        return WriteCount(written, outdated)

    def read(self, view: str, keys: Sequence[bytes]) -> list[tuple[int, bytes] | None]:
        with self._lock:
            kept = self._views.get(view, {})
            return [kept.get(key) for key in keys]

    def stats(self, view: str) -> ViewStats:
        kept = self._views.get(view, {})
        newest = max((at for at, _ in kept.values()), default=0)
        return ViewStats(len(kept), newest, self._writes.get(view, 0))

    def flush(self) -> None: ...

    def close(self) -> None: ...


class MemoryKind(OnlineStoreKind):
    name: ClassVar[str] = "memory"

    def open(self, folder: Path, options: Mapping[str, str]) -> OnlineStore:
        self.check_options(options)
        return MemoryStore()


class MeanAbsoluteError(Metric):
    name = "memory.mae"
    tasks = ("regression",)
    higher_is_better = False

    def score(self, labels: Array, scores: Array) -> float:
        return float(np.abs(labels - scores).mean())


class TestMemoryStore(OnlineStoreContract):
    durable = False

    def kind(self) -> OnlineStoreKind:
        return MemoryKind()


class TestMeanAbsoluteError(MetricContract):
    def metric(self) -> Metric:
        return MeanAbsoluteError()

    def labels(self) -> Any:
        return [1.0, 2.0, 4.0]

    def scores(self) -> Any:
        return [1.5, 2.0, 3.0]

    def expected(self) -> float:
        return 0.5


class TestSmallestContract(BackendContract):
    """An author who has an example() writes no more than this."""

    def backend(self) -> ModelBackend:
        return PythonBackend()


class Buffered(LoadedModel):
    """Answers from a buffer of its own, which the next call overwrites."""

    def __init__(self) -> None:
        self._buffer = np.zeros(64)

    def predict(self, inputs: Tensors) -> Tensors:
        rows = inputs["x"]
        self._buffer[: len(rows)] = rows
        return {"prediction": self._buffer[: len(rows)]}


def test_answers_from_a_shared_buffer_are_caught() -> None:
    class Author(BackendContract):
        def backend(self) -> ModelBackend:
            return PythonBackend()

    stored: Any = type("Stored", (), {"sample": {"x": np.arange(4.0)}})()
    with pytest.raises(AssertionError):
        Author().test_outputs_are_not_overwritten_by_later_calls(stored, Buffered())


def test_a_backend_without_example_says_what_to_override() -> None:
    class Bare(PythonBackend):
        def example(self) -> None:  # type: ignore[override]  # narrower is fine
            return None

    class Author(BackendContract):
        def backend(self) -> ModelBackend:
            return Bare()

    with pytest.raises(NotImplementedError, match="override model, sample and expected"):
        Author().model()


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_pickles_are_recognised_alone_and_in_archives(tmp_path: Path, protocol: int) -> None:
    import pickle
    import zipfile

    data = pickle.dumps({"weights": [1.0]}, protocol)
    assert _is_pickle("weights.bin", data)
    with zipfile.ZipFile(tmp_path / "model.zip", "w") as archive:
        archive.writestr("data/weights", data)
        archive.writestr("notes.txt", "nothing to see")
    assert list(_pickles(tmp_path / "model.zip")) == ["model.zip/data/weights"]


def test_what_is_no_pickle_is_left_in_peace(tmp_path: Path) -> None:
    np.save(tmp_path / "array.npy", np.arange(3))
    (tmp_path / "text.json").write_text("{}")
    assert not [name for path in tmp_path.iterdir() for name in _pickles(path)]


def test_a_process_that_dies_is_told_and_the_rest_still_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # As a parser in C does that reads past its end.
    (tmp_path / "deadly.py").write_text(
        "import os\n"
        "from treadle.plugins.backends.python import PythonBackend, echo\n"
        "class Deadly(PythonBackend):\n"
        "    def load(self, source):\n"
        "        if source.folder.name == 'bad': os.abort()\n"
        "        return super().load(source)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    deadly: ModelBackend = importlib.import_module("deadly").Deadly()
    folders = [tmp_path / name for name in ("first", "bad", "last", "absent")]
    for folder in folders[:3]:
        save_model(echo, folder, {"prediction": np.arange(3.0)})
    outcomes = load_in_fresh_process(deadly, *folders)
    assert [outcomes[str(folder)][0] for folder in folders] == ["ok", "crash", "ok", "NotFound"]


def test_unknown_options_of_a_store_name_themselves() -> None:
    with pytest.raises(InvalidInput, match="store 'memory' has no option 'path'; it has: none"):
        MemoryKind().open(Path(), {"path": "x"})
