"""What is particular to each built-in backend, beyond the contract."""

import importlib
import json
import pickle
import re
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from treadle.core.errors import DataLoss, InvalidInput
from treadle.plugins.backend import ModelSource
from treadle.plugins.backends.python import PythonBackend
from treadle.plugins.backends.sklearn import SklearnBackend
from treadle.plugins.backends.torch import TorchBackend
from treadle.plugins.errors import BackendFault
from treadle.plugins.packaging import MANIFEST, load_package, save_model
from treadle.plugins.tensors import Signature
from treadle.v1 import registry_pb2

RNG = np.random.default_rng(3)
ROWS = RNG.normal(size=(60, 3))
CLASS = np.arange(60) % 2
SAMPLE = {"features": ROWS[:6]}


def source(manifest: registry_pb2.Manifest, folder: Path, **options: str) -> ModelSource:
    return ModelSource(folder, Signature.from_proto(manifest.signature), {**manifest.backend_options, **options}, 1)


class TestSklearn:
    def test_code_of_ones_own_is_refused_when_saving(self, tmp_path: Path) -> None:
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import FunctionTransformer

        own = importlib.import_module("heuristics").always_on_time
        model = make_pipeline(FunctionTransformer(own), LogisticRegression())
        model[-1].fit(ROWS, CLASS)
        with pytest.raises(InvalidInput, match=r"heuristics\.always_on_time.*convert it to ONNX"):
            save_model(model, tmp_path / "model", SAMPLE)

    def test_code_of_ones_own_is_refused_when_loading(self, tmp_path: Path) -> None:
        import skops.io
        from sklearn.preprocessing import FunctionTransformer

        own = importlib.import_module("heuristics").always_on_time
        manifest = save_model(*_regression(), tmp_path / "model", SAMPLE)
        skops.io.dump(FunctionTransformer(own), tmp_path / "model" / "model.skops")
        with pytest.raises(InvalidInput, match="types that are not trusted: heuristics"):
            SklearnBackend().load(source(manifest, tmp_path / "model"))

    def test_a_pickle_in_disguise_is_refused(self, tmp_path: Path) -> None:
        manifest = save_model(*_regression(), tmp_path / "model", SAMPLE)
        (tmp_path / "model" / "model.skops").write_bytes(pickle.dumps([1, 2, 3]))
        with pytest.raises(BackendFault, match=r"model\.skops cannot be read"):
            SklearnBackend().load(source(manifest, tmp_path / "model"))

    def test_trained_on_a_data_frame_it_does_not_warn(self, tmp_path: Path) -> None:
        import pandas as pd
        from sklearn.ensemble import RandomForestClassifier

        model = RandomForestClassifier(3).fit(pd.DataFrame(ROWS, columns=["a", "b", "c"]), CLASS)
        save_model(model, tmp_path / "model", SAMPLE, columns={"features": ["a", "b", "c"]})
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            load_package(tmp_path / "model").predict(SAMPLE)

    def test_columns_in_another_order_than_trained_are_refused(self, tmp_path: Path) -> None:
        import pandas as pd
        from sklearn.linear_model import LogisticRegression

        model = LogisticRegression().fit(pd.DataFrame(ROWS, columns=["a", "b", "c"]), CLASS)
        with pytest.raises(InvalidInput, match="another order than it was trained with"):
            save_model(model, tmp_path / "model", SAMPLE, columns={"features": ["a", "c", "b"]})

    def test_threads_are_the_jobs_of_every_part(self, tmp_path: Path) -> None:
        from sklearn.ensemble import RandomForestClassifier
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        model = make_pipeline(StandardScaler(), RandomForestClassifier(3, n_jobs=-1)).fit(ROWS, CLASS)
        save_model(model, tmp_path / "model", SAMPLE)
        loaded: Any = load_package(tmp_path / "model", threads=2)
        assert loaded._estimator[-1].n_jobs == 2
        assert model[-1].n_jobs == -1

    def test_columns_are_put_side_by_side_in_the_signatures_order(self, tmp_path: Path) -> None:
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        model = make_pipeline(StandardScaler(), LogisticRegression()).fit(ROWS, CLASS)
        columns: dict[str, Any] = {"rest": ROWS[:, 1:].astype(np.float32), "first": ROWS[:, 0]}
        save_model(model, tmp_path / "model", {"first": columns["first"], "rest": columns["rest"]})
        answer = load_package(tmp_path / "model").predict(columns)
        assert np.allclose(answer["probability"], model.predict_proba(ROWS), atol=1e-6)

    def test_regressors_give_the_prediction(self, tmp_path: Path) -> None:
        from sklearn.ensemble import HistGradientBoostingRegressor

        model = HistGradientBoostingRegressor(max_iter=10).fit(ROWS, ROWS @ [1.0, -2.0, 0.5])
        manifest = save_model(model, tmp_path / "model", SAMPLE)
        assert [(spec.name, tuple(spec.shape)) for spec in manifest.signature.outputs] == [("prediction", (-1,))]
        answer = load_package(tmp_path / "model").predict({"features": ROWS})
        assert np.allclose(answer["prediction"], model.predict(ROWS))

    def test_classifiers_without_probability_give_the_label(self, tmp_path: Path) -> None:
        from sklearn.svm import LinearSVC

        manifest = save_model(LinearSVC().fit(ROWS, CLASS), tmp_path / "model", SAMPLE)
        assert [spec.name for spec in manifest.signature.outputs] == ["label"]

    def test_what_trees_and_neighbours_are_made_of_is_trusted(self, tmp_path: Path) -> None:
        from sklearn.calibration import CalibratedClassifierCV
        from sklearn.ensemble import GradientBoostingClassifier, HistGradientBoostingClassifier
        from sklearn.linear_model import LogisticRegression
        from sklearn.neighbors import KNeighborsClassifier
        from sklearn.neural_network import MLPClassifier

        models: list[Any] = [
            CalibratedClassifierCV(LogisticRegression(), cv=2),
            GradientBoostingClassifier(n_estimators=3),
            HistGradientBoostingClassifier(max_iter=3),
            KNeighborsClassifier(),
            MLPClassifier((3,), max_iter=20, solver="sgd", learning_rate_init=1e-3, tol=1e9, n_iter_no_change=1),
        ]
        for index, model in enumerate(models):
            model.fit(ROWS, CLASS)
            save_model(model, tmp_path / str(index), SAMPLE)
            answer = load_package(tmp_path / str(index)).predict(SAMPLE)
            assert answer["label"].tolist() == model.predict(SAMPLE["features"]).tolist()


class TestTorch:
    @pytest.fixture(scope="class")
    @classmethod
    def package(cls, tmp_path_factory: pytest.TempPathFactory) -> Path:
        import torch

        folder = tmp_path_factory.mktemp("torch") / "model"
        model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Flatten(), torch.nn.Linear(4, 2))
        save_model(model, folder, {"features": ROWS[:1].astype(np.float32)}, options={"outputs": "score"})
        return folder

    def test_one_sample_row_does_not_fix_the_number_of_rows(self, package: Path) -> None:
        answer = load_package(package).predict({"features": ROWS.astype(np.float32)})
        assert answer["score"].shape == (60, 2)

    def test_nothing_is_an_archive(self, package: Path) -> None:
        files = [path for path in package.rglob("*") if path.is_file()]
        assert {MANIFEST, "program.json", "weights.safetensors"} <= {path.name for path in files}
        assert not any(zipfile.is_zipfile(path) for path in files)
        here = str(Path(__file__).parent).encode()  # no paths of the author's
        assert not any(here in path.read_bytes() for path in files)

    @pytest.mark.parametrize(
        ("where", "text"),
        [
            ("target", "torch.hub.load"),
            ("target", "torch.ops.aten.from_file.default"),
            ("target", "_operator.methodcaller"),
            ("name", "x=__import__('os').abort()"),
            ("expr_str", "__import__('os').abort()"),
            ("expr_str", "Symbol('s0', positive=True).__class__"),
            ("in_spec", '[1, {"type": "os.system", "context": "null", "children_spec": []}]'),
        ],
    )
    def test_programs_that_would_run_anything_else_are_refused(
        self, package: Path, tmp_path: Path, where: str, text: str
    ) -> None:
        stored = json.loads((package / "program.json").read_text())
        changed = _replace_first(stored["program"], where, text)
        assert changed, f"the program has no {where}"
        for name in ("weights.safetensors", MANIFEST):
            (tmp_path / name).write_bytes((package / name).read_bytes())
        (tmp_path / "program.json").write_text(json.dumps(stored))
        with pytest.raises(InvalidInput, match="does not run"):
            load_package(tmp_path)

    @pytest.mark.parametrize("option", ["a,b", "a,,b", ","])
    def test_names_must_be_those_of_the_outputs(self, package: Path, option: str) -> None:
        from treadle.plugins.packaging import read_package

        with pytest.raises(InvalidInput, match="the model has 1 outputs; name each"):
            TorchBackend().load(source(read_package(package), package, outputs=option))

    def test_a_tuple_needs_names(self, tmp_path: Path) -> None:
        import torch

        class Two(torch.nn.Module):
            def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
                return x * 2, x.sum(dim=1)

        with pytest.raises(InvalidInput, match="the model has 2 outputs; name each"):
            save_model(Two(), tmp_path / "model", SAMPLE)
        manifest = save_model(Two(), tmp_path / "model", SAMPLE, options={"outputs": "double,sum"})
        assert [spec.name for spec in manifest.signature.outputs] == ["double", "sum"]

    def test_tied_weights_are_stored(self, tmp_path: Path) -> None:
        import torch

        first = torch.nn.Linear(3, 3)
        model = torch.nn.Sequential(first, torch.nn.ReLU(), first)
        save_model(model, tmp_path / "model", {"x": ROWS[:4].astype(np.float32)})
        assert load_package(tmp_path / "model").predict({"x": ROWS.astype(np.float32)})["prediction"].shape == (60, 3)

    def test_models_that_need_a_fixed_number_of_rows_are_refused(self, tmp_path: Path) -> None:
        import torch

        class Fixed(torch.nn.Module):
            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return x + torch.ones(6, 3)

        with pytest.raises(InvalidInput, match="cannot export this Fixed with a free number of rows"):
            save_model(Fixed(), tmp_path / "model", {"x": ROWS[:6].astype(np.float32)})


class TestOnnx:
    def convert(self, **options: Any) -> Any:
        from skl2onnx import to_onnx
        from sklearn.linear_model import LogisticRegression

        return to_onnx(LogisticRegression().fit(ROWS.astype(np.float32), CLASS), ROWS[:1].astype(np.float32), **options)

    def test_maps_say_how_to_convert(self, tmp_path: Path) -> None:
        with pytest.raises(InvalidInput, match="not a tensor; convert the model with zipmap off"):
            save_model(self.convert(), tmp_path / "model", {"X": ROWS[:5].astype(np.float32)})

    def test_outputs_may_be_picked(self, tmp_path: Path) -> None:
        model, options = self.convert(), {"outputs": "late=output_label"}
        manifest = save_model(model, tmp_path / "model", {"X": ROWS[:5].astype(np.float32)}, options=options)
        assert [spec.name for spec in manifest.signature.outputs] == ["late"]

    @pytest.mark.parametrize("outputs", ["no_such", "a=output_label,a=output_label", "="])
    def test_outputs_that_are_none_are_refused(self, tmp_path: Path, outputs: str) -> None:
        with pytest.raises(InvalidInput, match="wanted NAME=OUTPUT"):
            save_model(self.convert(), tmp_path / "m", {"X": ROWS[:5].astype(np.float32)}, options={"outputs": outputs})

    @pytest.mark.parametrize(
        ("sample", "words"),
        [
            ({"X": ROWS[:5]}, r"is FP64, the graph wants tensor\(float\)"),
            ({"X": ROWS[:5, :2].astype(np.float32)}, "has shape"),
            ({"x": ROWS[:5].astype(np.float32)}, "not in the graph, whose inputs are X"),
        ],
    )
    def test_inputs_must_be_the_graphs(self, tmp_path: Path, sample: dict[str, Any], words: str) -> None:
        with pytest.raises(InvalidInput, match="not those of the ONNX graph") as caught:
            save_model(self.convert(options={"zipmap": False}), tmp_path / "model", sample)
        assert any(re.search(words, v.description) for v in caught.value.violations)

    def test_a_file_is_taken_as_it_is(self, tmp_path: Path) -> None:
        file = tmp_path / "given.onnx"
        file.write_bytes(self.convert(options={"zipmap": False}).SerializeToString())
        save_model(file, tmp_path / "model", {"X": ROWS[:5].astype(np.float32)})
        assert (tmp_path / "model" / "model.onnx").read_bytes() == file.read_bytes()


class TestXgboost:
    def test_trees_after_the_best_round_are_left_out(self, tmp_path: Path) -> None:
        from xgboost import XGBRegressor

        noise = RNG.normal(size=60)
        model = XGBRegressor(n_estimators=40, early_stopping_rounds=3, n_jobs=1)
        model.fit(ROWS[:40], noise[:40], eval_set=[(ROWS[40:], noise[40:])], verbose=False)
        assert model.best_iteration < model.get_booster().num_boosted_rounds() - 1
        save_model(model, tmp_path / "model", SAMPLE)
        answer = load_package(tmp_path / "model").predict(SAMPLE)["prediction"]
        assert np.allclose(answer, model.predict(SAMPLE["features"]))

    def test_three_classes_and_regression(self, tmp_path: Path) -> None:
        from xgboost import XGBClassifier, XGBRegressor

        classes = (ROWS[:, 0] > 0) * 1 + (ROWS[:, 1] > 0)
        classifier = XGBClassifier(n_estimators=4, n_jobs=1).fit(ROWS, classes)
        save_model(classifier, tmp_path / "classifier", SAMPLE)
        answer = load_package(tmp_path / "classifier").predict({"features": ROWS})
        assert np.allclose(answer["probability"], classifier.predict_proba(ROWS), atol=1e-6)
        assert answer["label"].tolist() == classifier.predict(ROWS).tolist()
        regressor = XGBRegressor(n_estimators=4, n_jobs=1).fit(ROWS, ROWS[:, 2])
        save_model(regressor, tmp_path / "regressor", SAMPLE)
        answer = load_package(tmp_path / "regressor").predict({"features": ROWS})
        assert np.allclose(answer["prediction"], regressor.predict(ROWS))

    def test_missing_values_are_answered(self, tmp_path: Path) -> None:
        from xgboost import XGBClassifier

        gaps = np.where(ROWS > 1, np.nan, ROWS)
        model = XGBClassifier(n_estimators=3, n_jobs=1).fit(gaps, CLASS)
        save_model(model, tmp_path / "model", {"features": gaps}, allow_nan=True)
        answer = load_package(tmp_path / "model").predict({"features": gaps})["probability"]
        assert np.allclose(answer, model.predict_proba(gaps))


class TestLightgbm:
    def test_three_classes_keep_their_names(self, tmp_path: Path) -> None:
        from lightgbm import LGBMClassifier

        words = np.array(["early", "late", "on time"], dtype=object)[(ROWS[:, 0] > 0) + (ROWS[:, 1] > 0) * 1]
        model = LGBMClassifier(n_estimators=4, min_child_samples=2, n_jobs=1, verbose=-1).fit(ROWS, words)
        manifest = save_model(model, tmp_path / "model", {"features": ROWS})
        assert [tuple(spec.shape) for spec in manifest.signature.outputs] == [(-1, 3), (-1,)]
        answer = load_package(tmp_path / "model").predict({"features": ROWS})
        assert set(answer["label"]) <= set(words)
        assert np.mean(answer["label"] == words) > 0.8

    def test_regressors_give_the_prediction(self, tmp_path: Path) -> None:
        from lightgbm import LGBMRegressor

        model = LGBMRegressor(n_estimators=4, n_jobs=1, verbose=-1).fit(ROWS, ROWS[:, 1])
        save_model(model, tmp_path / "model", SAMPLE)
        answer = load_package(tmp_path / "model").predict({"features": ROWS})
        assert np.allclose(answer["prediction"], model.booster_.predict(ROWS))


class TestPython:
    @pytest.fixture
    def package(self, tmp_path: Path) -> Path:
        save_model(importlib.import_module("heuristics").always_on_time, tmp_path / "model", {"delay": np.arange(4.0)})
        return tmp_path / "model"

    def test_nothing_but_a_reference_is_stored(self, package: Path) -> None:
        stored = json.loads((package / "function.json").read_text())
        assert set(stored) == {"function", "source_sha256"}
        assert stored["function"] == "heuristics:always_on_time"

    def test_another_source_is_refused(self, package: Path) -> None:
        stored = json.loads((package / "function.json").read_text())
        (package / "function.json").write_text(json.dumps(stored | {"source_sha256": "0" * 64}))
        with pytest.raises(DataLoss, match="install that release here, or register the model anew"):
            load_package(package)

    @pytest.mark.parametrize(
        ("function", "words"),
        [
            ("no_such_module:f", "cannot be imported here"),
            ("heuristics:no_such", "has no function 'no_such'"),
            ("os:system", "has no function 'system' written in Python"),
            ("heuristics", "is not of the form package.module:function"),
            ("../up:f", "is not of the form"),
            ("heuristics:np.save", "is not of the form"),
        ],
    )
    def test_references_to_nothing_are_refused(self, package: Path, function: str, words: str) -> None:
        (package / "function.json").write_text(json.dumps({"function": function, "source_sha256": "0" * 64}))
        manifest = json.loads((package / MANIFEST).read_text())
        (package / MANIFEST).write_text(json.dumps(manifest | {"backendOptions": {}}))
        with pytest.raises(InvalidInput, match=words):
            load_package(package)

    def test_an_option_that_contradicts_the_file_is_refused(self, package: Path) -> None:
        from treadle.plugins.packaging import read_package

        with pytest.raises(InvalidInput, match="the model was saved from 'heuristics:always_on_time'"):
            PythonBackend().load(source(read_package(package), package, function="heuristics:raises"))

    def test_functions_nobody_could_import_are_refused(self, tmp_path: Path) -> None:
        def local(inputs: dict[str, Any]) -> dict[str, Any]:
            return inputs

        for function in (local, lambda inputs: inputs):
            with pytest.raises(InvalidInput, match="put it at the top level of a module"):
                save_model(function, tmp_path / "model", {"delay": np.arange(4.0)})


def _regression() -> tuple[Any]:
    from sklearn.linear_model import LinearRegression

    return (LinearRegression().fit(ROWS, ROWS[:, 0]),)


def _replace_first(value: Any, key: str, text: str) -> bool:
    """Puts `text` in place of the first string under `key`."""
    if isinstance(value, dict):
        if isinstance(value.get(key), str):
            value[key] = text
            return True
        return any(_replace_first(inner, key, text) for inner in value.values())
    return isinstance(value, list) and any(_replace_first(inner, key, text) for inner in value)
