"""Model folders: written whole or not at all, read strictly, held to their sample."""

import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import LinearRegression, LogisticRegression

from treadle.core.errors import AlreadyExists, InvalidInput, NotFound
from treadle.plugins.backends.python import PythonBackend
from treadle.plugins.checked import CheckedModel
from treadle.plugins.errors import BackendFault
from treadle.plugins.manager import Plugins
from treadle.plugins.packaging import (
    MANIFEST,
    SAMPLE_ROWS,
    load_package,
    read_package,
    save_model,
    source_of,
)
from treadle.plugins.tensors import Signature
from treadle.rpc.codec.columns import decode_all
from treadle.v1 import registry_pb2

RNG = np.random.default_rng(1)
ROWS = RNG.normal(size=(100, 3))
CLASS = np.arange(100) % 2


@pytest.fixture
def model() -> Any:
    return LogisticRegression().fit(ROWS, CLASS)


@pytest.fixture
def package(model: Any, tmp_path: Path) -> Path:
    save_model(model, tmp_path / "model", {"features": ROWS[:5]})
    return tmp_path / "model"


def test_a_saved_model_says_what_it_is(model: Any, tmp_path: Path) -> None:
    manifest = save_model(
        model,
        tmp_path / "deep" / "model",
        {"features": ROWS[:5].astype(np.float32)},
        columns={"features": ["origin__wind", "origin__rain", "dep_hour"]},
        units={"features": ["knots", "mm", "hours"]},
        feature_service="flights",
        parameters={"C": 1.0},
        metrics={"auc": 0.7},
        lineage=registry_pb2.Lineage(code_revision="abc"),
        description="Late or not",
    )
    assert manifest.backend == "sklearn"
    (features,) = Signature.from_proto(manifest.signature).inputs
    assert (features.dtype, features.shape, features.allow_nan) == ("FP32", (-1, 3), False)
    assert features.columns == ("origin__wind", "origin__rain", "dep_hour")
    assert features.units == ("knots", "mm", "hours")
    assert [output.name for output in manifest.signature.outputs] == ["probability", "label"]
    assert (manifest.feature_service, manifest.parameters["C"], manifest.metrics["auc"]) == ("flights", "1.0", 0.7)
    assert manifest.lineage.code_revision == "abc"
    assert {"python", "numpy", "scikit-learn", "skops"} <= set(manifest.lineage.environment)
    assert manifest.description == "Late or not"
    outputs = decode_all(manifest.sample_outputs)
    assert np.allclose(outputs["probability"].values, model.predict_proba(ROWS[:5]), atol=1e-5)
    assert [file.path for file in manifest.files] == ["compiled/model.onnx", "model.skops"]
    assert manifest == read_package(tmp_path / "deep" / "model")


def test_save_load_predict(model: Any, package: Path) -> None:
    loaded = load_package(package)
    assert np.allclose(loaded.predict({"features": ROWS})["probability"], model.predict_proba(ROWS))
    loaded.close()


def test_only_so_many_sample_rows_are_kept(model: Any, tmp_path: Path) -> None:
    manifest = save_model(model, tmp_path / "model", {"features": ROWS})
    assert decode_all(manifest.sample_inputs)["features"].rows == SAMPLE_ROWS


def test_a_folder_in_use_is_left_alone(model: Any, package: Path) -> None:
    before = sorted(package.iterdir())
    with pytest.raises(AlreadyExists, match="not empty"):
        save_model(model, package, {"features": ROWS[:5]})
    assert sorted(package.iterdir()) == before


def test_what_fails_leaves_nothing_behind(model: Any, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="3 features, the signature's inputs make 2"):
        save_model(model, tmp_path / "model", {"features": ROWS[:5, :2]})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"sample": {}}, "signature is not usable"),
        ({"sample": {"features": ROWS[:0]}}, "do not fit"),
        ({"sample": {"features": 1.0}}, "no rows axis"),
        ({"sample": {"a": ROWS[:5], "b": ROWS[:4]}}, "do not fit"),
        ({"sample": {"features": np.where(ROWS[:5] > 0, ROWS[:5], np.nan)}}, "do not fit"),
        ({"sample": {"features": np.array([["a", "b", "c"]])}}, "matrix of numbers"),
        ({"columns": {"other": ["a"]}}, "which the sample does not have"),
        ({"columns": {"features": ["a"]}}, "signature is not usable"),
        ({"options": {"no-such": "1"}}, "no option 'no-such'; it has: none"),
        ({"backend": "torch"}, "backend 'torch' cannot save a sklearn"),
    ],
)
def test_wrong_arguments_are_told(model: Any, tmp_path: Path, arguments: dict[str, Any], words: str) -> None:
    given: dict[str, Any] = {"sample": {"features": ROWS[:5]}} | arguments
    sample = given.pop("sample")
    with pytest.raises(InvalidInput, match=words):
        save_model(model, tmp_path / "model", sample, **given)
    assert list(tmp_path.iterdir()) == []


def test_what_no_backend_knows_is_told(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"no backend can save a builtins\.object"):
        save_model(object(), tmp_path / "model", {"x": ROWS})
    with pytest.raises(NotFound, match="no plugin gives the model backend 'pmml'"):
        save_model(object(), tmp_path / "model", {"x": ROWS}, backend="pmml")


def test_an_unsuitable_choice_names_the_plugins_that_cannot_be_used(model: Any, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"no backend can save .*sklearn: it is on the list of blocked plugins"):
        save_model(model, tmp_path / "m", {"x": ROWS}, plugins=Plugins.load(blocked=["sklearn"]))


def test_a_folder_without_manifest_is_told(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(NotFound, match=MANIFEST):
            read_package(folder)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"backend": 1}', '{"bakend": "sklearn"}', "{}", '{"backend": "onnx"}']
)
def test_manifests_that_are_none_are_refused(package: Path, text: str) -> None:
    (package / MANIFEST).write_text(text)
    with pytest.raises(InvalidInput):
        read_package(package)


def test_a_manifest_that_is_not_text_is_refused(package: Path) -> None:
    (package / MANIFEST).write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InvalidInput, match="not UTF-8"):
        read_package(package)


def test_links_are_refused(package: Path) -> None:
    (package / "escape").symlink_to("/etc/hostname")
    with pytest.raises(InvalidInput, match="is a link"):
        read_package(package)


def test_nothing_is_loaded_from_a_folder_with_links(package: Path) -> None:
    (package / "escape").symlink_to("/etc/hostname")
    with pytest.raises(InvalidInput, match="is a link"):
        load_package(package)


def test_files_are_listed_with_their_digests(package: Path) -> None:
    (package / "notes").mkdir()
    (package / "notes" / "a.txt").write_text("abc")
    files = {file.path: file for file in read_package(package).files}
    assert set(files) == {"compiled/model.onnx", "model.skops", "notes/a.txt"}
    assert files["notes/a.txt"].size_bytes == 3
    assert files["notes/a.txt"].sha256 == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_a_model_that_answers_otherwise_than_when_it_was_made_is_refused(package: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    save_model(LogisticRegression().fit(-ROWS, CLASS), other, {"features": ROWS[:5]})
    (other / "model.skops").replace(package / "model.skops")
    with pytest.raises(BackendFault, match="differs from what the model answered when it was made"):
        load_package(package)


def test_options_of_a_manifest_are_checked(package: Path) -> None:
    manifest = json.loads((package / MANIFEST).read_text())
    manifest["backendOptions"] = {"n_jobs": "4"}
    (package / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(InvalidInput, match="no option 'n_jobs'"):
        load_package(package)


@pytest.mark.parametrize(
    ("function", "words"),
    [
        ("raises", "the model raised RuntimeError"),
        ("wrong_shape", "not an array with a row for each"),
        ("not_a_dict", "not a dict of arrays"),
    ],
)
def test_models_that_break_their_promises_are_named_without_values(tmp_path: Path, function: str, words: str) -> None:
    heuristic = getattr(importlib.import_module("heuristics"), function)
    with pytest.raises(BackendFault, match=words) as caught:
        save_model(heuristic, tmp_path / "model", {"delay": np.arange(5.0)})
    assert "secret" not in caught.value.message


def test_a_model_that_breaks_its_promise_later_is_a_fault(tmp_path: Path) -> None:
    heuristic = importlib.import_module("heuristics").wrong_shape
    manifest = save_model(heuristic, tmp_path / "model", {"delay": np.arange(3.0)})
    loaded = CheckedModel.load(PythonBackend(), source_of(manifest, tmp_path / "model"))
    with pytest.raises(BackendFault, match="broke its signature"):
        loaded.predict({"delay": np.arange(5.0)}, 5)


def test_nan_goes_where_it_is_allowed(tmp_path: Path) -> None:
    from sklearn.ensemble import HistGradientBoostingRegressor

    gaps = np.where(ROWS > 1, np.nan, ROWS)
    model = HistGradientBoostingRegressor(max_iter=3).fit(gaps, ROWS[:, 0])
    manifest = save_model(model, tmp_path / "model", {"features": gaps}, allow_nan=True)
    assert manifest.signature.inputs[0].allow_nan
    load_package(tmp_path / "model").close()


def test_threads_reach_the_model(tmp_path: Path) -> None:
    save_model(LinearRegression().fit(ROWS, ROWS[:, 0]), tmp_path / "model", {"features": ROWS})
    loaded = load_package(tmp_path / "model", threads=1)
    loaded.predict({"features": ROWS})
    from threadpoolctl import threadpool_info  # type: ignore[import-untyped]  # it ships no types

    assert {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"} == {1}
