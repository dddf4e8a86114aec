"""The contract of model backends, as tests."""
# ruff: noqa: S101 - a test suite asserts

import json
import os
import shutil
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from treadle.core.errors import InvalidInput, TreadleError
from treadle.plugins.backend import Example, LoadedModel, ModelBackend, ModelSource
from treadle.plugins.compiling.comparing import Tolerance, compare
from treadle.plugins.errors import NotCompiled
from treadle.plugins.hookspecs import hookimpl
from treadle.plugins.host import host
from treadle.plugins.manager import Plugins
from treadle.plugins.packaging import MANIFEST, read_package, save_model
from treadle.plugins.tensors import Array, Signature, Tensors
from treadle.v1 import registry_pb2

_FAILS_CLEANLY = frozenset({"InvalidInput", "BackendFault", "DataLoss", "NotFound"})


@dataclass(frozen=True)
class Stored:
    """A model as `save_model` wrote it."""

    backend: ModelBackend
    original: Any
    folder: Path
    manifest: registry_pb2.Manifest
    signature: Signature
    sample: dict[str, Array]
    before: Mapping[str, Any]
    """The outputs of the original for the sample before it was saved."""

    def source(self, threads: int = 1) -> ModelSource:
        return ModelSource(self.folder, self.signature, dict(self.manifest.backend_options), threads)

    def load(self, threads: int = 1) -> LoadedModel:
        return self.backend.load(self.source(threads))


class BackendContract:
    """Inherit, name the class Test…, and override `backend`; for another model, also the next three."""

    relative_tolerance = 1e-5
    absolute_tolerance = 1e-6

    def backend(self) -> ModelBackend:
        """The backend; its class must be importable and take no arguments."""
        raise NotImplementedError

    def model(self) -> Any:
        """A small trained model."""
        return _example(self.backend()).model

    def sample(self) -> Mapping[str, Any]:
        """Real inputs by tensor name: three rows or more, not all equal."""
        return _example(self.backend()).sample

    def expected(self, model: Any, inputs: Tensors) -> Mapping[str, Any]:
        """The outputs of `model` itself, without Treadle, for `inputs`: some or all of them."""
        return _example(self.backend()).expected

    def options(self) -> Mapping[str, str]:
        """Backend options to save the model with."""
        return {}

    @pytest.fixture(scope="class")
    @classmethod
    def stored(cls, tmp_path_factory: pytest.TempPathFactory) -> Stored:
        author = cls()
        backend, model = author.backend(), author.model()
        folder = tmp_path_factory.mktemp("contract") / "model"
        sample = {name: np.asarray(values) for name, values in author.sample().items()}
        before = author.expected(model, sample)
        manifest = save_model(
            model, folder, sample, backend=backend.name, options=author.options(), plugins=plugins_of(backend)
        )
        assert len(next(iter(sample.values()))) >= 3, "sample() must give three rows or more"
        return Stored(backend, model, folder, manifest, Signature.from_proto(manifest.signature), sample, before)

    @pytest.fixture
    def loaded(self, stored: Stored) -> Iterator[LoadedModel]:
        model = stored.load()
        yield model
        model.close()

    def test_the_plugin_registers_the_backend(self, stored: Stored) -> None:
        assert stored.backend.name in host(stored.backend.name.partition(".")[0], _plugin(stored.backend)).backends
        assert all(isinstance(help_, str) and help_ for help_ in stored.backend.options.values())

    def test_can_save_accepts_only_models_of_the_framework(self, stored: Stored) -> None:
        assert stored.backend.can_save(stored.original)
        assert not stored.backend.can_save(object())

    def test_outputs_match_the_original_model(self, stored: Stored, loaded: LoadedModel) -> None:
        expected = self.expected(stored.original, stored.sample)
        answer = loaded.predict(stored.sample)
        assert expected, "expected() must give one output or more"
        for name, wanted in expected.items():
            assert name in answer, f"output {name!r} is missing; the model gives {', '.join(answer)}"
            self.assert_same(name, answer[name], np.asarray(wanted))

    def test_outputs_match_the_signature(self, stored: Stored, loaded: LoadedModel) -> None:
        for rows in (1, 2, 33):
            inputs = _repeat_rows(stored.sample, rows)
            assert stored.signature.check_inputs(inputs) == rows
            stored.signature.check_outputs(loaded.predict(inputs), rows)

    def test_outputs_have_the_standard_names_and_shapes(self, stored: Stored) -> None:
        outputs = {spec.name: spec for spec in stored.signature.outputs}
        if "probability" in outputs:
            spec = outputs["probability"]
            assert spec.dtype in {"FP32", "FP64"}
            assert len(spec.shape) == 2, "probability is [rows, classes]"
        if "label" in outputs:
            assert len(outputs["label"].shape) == 1

    def test_a_row_does_not_depend_on_its_neighbours(self, stored: Stored, loaded: LoadedModel) -> None:
        rows = len(next(iter(stored.sample.values())))
        together = loaded.predict(stored.sample)
        alone = [loaded.predict({n: a[i : i + 1] for n, a in stored.sample.items()}) for i in range(rows)]
        backwards = loaded.predict({n: a[::-1].copy() for n, a in stored.sample.items()})
        for name, answer in together.items():
            self.assert_same(name, np.concatenate([one[name] for one in alone]), answer)
            self.assert_same(name, backwards[name][::-1], answer)

    def test_predictions_are_deterministic(self, stored: Stored, loaded: LoadedModel) -> None:
        first, second = loaded.predict(stored.sample), loaded.predict(stored.sample)
        for name, answer in first.items():
            assert np.array_equal(answer, second[name], equal_nan=answer.dtype.kind == "f")

    def test_outputs_are_not_overwritten_by_later_calls(self, stored: Stored, loaded: LoadedModel) -> None:
        # A model that returns its own buffer would overwrite outputs that another request still reads.
        first = loaded.predict(stored.sample)
        copies = {name: answer.copy() for name, answer in first.items()}
        loaded.predict(_repeat_rows({name: array[::-1] for name, array in stored.sample.items()}, 33))
        for name, answer in first.items():
            assert np.array_equal(answer, copies[name], equal_nan=answer.dtype.kind == "f")

    def test_inputs_are_not_changed(self, stored: Stored, loaded: LoadedModel) -> None:
        inputs = {name: array.copy() for name, array in stored.sample.items()}
        loaded.predict(inputs)
        for name, array in inputs.items():
            assert np.array_equal(array, stored.sample[name], equal_nan=array.dtype.kind == "f")

    def test_inputs_may_be_read_only(self, stored: Stored, loaded: LoadedModel) -> None:
        inputs = {name: array.copy() for name, array in stored.sample.items()}
        for array in inputs.values():
            array.flags.writeable = False
        stored.signature.check_outputs(loaded.predict(inputs), len(next(iter(inputs.values()))))

    def test_threads_do_not_change_the_answer(self, stored: Stored, loaded: LoadedModel) -> None:
        other = stored.load(threads=2)
        answer = other.predict(stored.sample)
        for name, wanted in loaded.predict(stored.sample).items():
            self.assert_same(name, answer[name], wanted)
        other.close()

    def test_two_loads_do_not_share_state(self, stored: Stored, loaded: LoadedModel) -> None:
        other = stored.load()
        other.close()
        stored.signature.check_outputs(loaded.predict(_repeat_rows(stored.sample, 2)), 2)

    def test_the_onnx_form_has_the_outputs_of_the_model(self, stored: Stored) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # converters emit many warnings
            try:
                data = stored.backend.to_onnx(stored.original, stored.sample, stored.source())
            except NotCompiled:  # an ONNX form is optional
                return
        session = pytest.importorskip("onnxruntime").InferenceSession(data, providers=["CPUExecutionProvider"])
        names = [spec.name for spec in stored.signature.outputs]
        for rows in (1, 33):
            inputs = _repeat_rows(stored.sample, rows)
            answer = dict(zip(names, session.run(names, inputs), strict=True))
            stored.signature.check_outputs(answer, rows)
            wanted = stored.load().predict(inputs)
            found = compare(answer, wanted, Tolerance(self.relative_tolerance, self.absolute_tolerance))
            assert not found.wrong, f"the ONNX form differs, in rows of each output: {dict(found.wrong)}"

    def test_unknown_options_are_refused(self, stored: Stored) -> None:
        options = {**stored.manifest.backend_options, "no-such-option": "1"}
        with pytest.raises(InvalidInput, match="no-such-option"):
            stored.backend.load(ModelSource(stored.folder, stored.signature, options, threads=1))

    def test_saving_does_not_change_the_model(self, stored: Stored) -> None:
        after = self.expected(stored.original, stored.sample)
        for name, answer in stored.before.items():
            self.assert_same(name, np.asarray(after[name]), np.asarray(answer))

    def test_closing_twice_is_fine(self, stored: Stored) -> None:
        model = stored.load()
        model.predict(stored.sample)
        model.close()
        model.close()

    def test_the_folder_holds_no_pickle(self, stored: Stored) -> None:
        assert stored.manifest.files, "the backend wrote no file"
        for file in stored.manifest.files:
            suspicious = list(_pickles(stored.folder / file.path))
            assert not suspicious, f"{', '.join(suspicious)} is a pickle: loading it can run anything"

    def test_the_manifest_lists_the_files_of_the_folder(self, stored: Stored) -> None:
        assert list(read_package(stored.folder).files) == list(stored.manifest.files)

    def test_missing_files_raise_an_error_of_the_tree(self, stored: Stored, tmp_path: Path) -> None:
        with pytest.raises(TreadleError) as caught:
            stored.backend.load(
                ModelSource(tmp_path, stored.signature, dict(stored.manifest.backend_options), threads=1)
            )
        assert type(caught.value).__name__ in _FAILS_CLEANLY

    def test_loads_in_a_fresh_process_and_survives_corrupt_files(self, stored: Stored, tmp_path: Path) -> None:
        corrupt = [copy for file in stored.manifest.files for copy in _corruptions(stored.folder, file.path, tmp_path)]
        outcomes = load_in_fresh_process(stored.backend, stored.folder, *corrupt)
        assert outcomes.get(str(stored.folder)) == ("ok", ""), f"a fresh process: {outcomes.get(str(stored.folder))}"
        for folder in corrupt:
            outcome, message = outcomes.get(str(folder), ("crash", "the process died"))
            assert outcome in _FAILS_CLEANLY, f"{folder.name}: {outcome} {message}"

    def assert_same(self, name: str, got: Array, wanted: Array) -> None:
        """Asserts that two outputs are equal, floats within the tolerances."""
        assert got.shape == wanted.shape, f"output {name!r} has shape {got.shape}, {wanted.shape} is wanted"
        if got.dtype.kind == "f":
            np.testing.assert_allclose(
                got, wanted, rtol=self.relative_tolerance, atol=self.absolute_tolerance, err_msg=f"output {name!r}"
            )
        else:
            assert got.tolist() == wanted.tolist(), f"output {name!r} differs"


def _example(backend: ModelBackend) -> Example:
    example = _examples(type(backend))
    if example is None:
        raise NotImplementedError(f"backend {backend.name!r} has no example(); override model, sample and expected")
    return example


@cache
def _examples(kind: Callable[[], ModelBackend]) -> Example | None:
    return kind().example()  # cached, so that model and expected outputs belong together


def plugins_of(backend: ModelBackend) -> Plugins:
    """Plugins with only this backend, which need not be installed."""
    return Plugins.load(installed=(), modules={backend.name.partition(".")[0]: _plugin(backend)})


def load_in_fresh_process(backend: ModelBackend, *folders: Path) -> dict[str, tuple[str, str]]:
    """Outcome and message by folder; see `_fresh`. After a folder that crashes the process, a new process continues."""
    outcomes: dict[str, tuple[str, str]] = {}
    waiting = [str(folder) for folder in folders]
    kind = type(backend)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    while waiting:
        command = [sys.executable, "-m", "treadle.plugins.testing._fresh", kind.__module__, kind.__name__, *waiting]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)  # noqa: S603  # our own module
        lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
        outcomes |= {line["folder"]: (line["outcome"], line["message"]) for line in lines}
        if len(lines) < len(waiting):
            outcomes[waiting[len(lines)]] = ("crash", f"exit status {done.returncode}: {done.stderr[-500:]}")
        waiting = waiting[len(lines) + 1 :]
    return outcomes


def _plugin(backend: ModelBackend) -> Any:
    class Plugin:
        @hookimpl
        def treadle_model_backends(self, register: Any) -> None:
            register(backend)

    return Plugin()


def _repeat_rows(sample: Tensors, rows: int) -> dict[str, Array]:
    """The sample, repeated or cut to `rows` rows."""
    return {name: array[np.arange(rows) % len(array)] for name, array in sample.items()}


def _corruptions(folder: Path, name: str, scratch: Path) -> Iterator[Path]:
    """Copies of the model folder with one file cut in half, emptied, and overwritten."""
    size = (folder / name).stat().st_size
    half = (folder / name).read_bytes()[: size // 2]
    for kind, content in {"half": half, "empty": b"", "garbage": b"\x93\x00garbage" * (size // 9 + 1)}.items():
        copy = scratch / f"{name.replace('/', '-')}-{kind}"
        shutil.copytree(folder, copy)
        (copy / name).write_bytes(content)
        yield copy


def _pickles(path: Path) -> Iterator[str]:
    """The names of pickles: the file itself, or members of an archive."""
    if path.name == MANIFEST:
        return
    if _is_pickle(path.name, path.read_bytes()):
        yield path.name
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            for member in archive.namelist():
                if _is_pickle(member, archive.read(member)):
                    yield f"{path.name}/{member}"


def _is_pickle(name: str, data: bytes) -> bool:
    # Since protocol 2 (2003), a pickle begins with PROTO and ends with STOP.
    binary = len(data) > 2 and data[0] == 0x80 and 2 <= data[1] <= 5 and data.endswith(b".")
    return binary or name.endswith((".pkl", ".pickle", ".joblib"))
