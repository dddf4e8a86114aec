"""The faster form of a model: kept where it answers alike and faster, otherwise the manifest says why not."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from treadle.core.errors import InvalidInput
from treadle.plugins.backend import LoadedModel, ModelBackend, ModelSource
from treadle.plugins.backends.onnx_export.graph import require_modules
from treadle.plugins.checked import CheckedModel, ManifestSample, load_verified
from treadle.plugins.compiling.comparing import Tolerance, compare
from treadle.plugins.compiling.compiler import Compiler, source_of_compiled
from treadle.plugins.errors import NotCompiled
from treadle.plugins.hookspecs import hookimpl
from treadle.plugins.manager import Plugins
from treadle.plugins.packaging import load_package, read_package, save_model, source_of
from treadle.plugins.tensor_spec import TensorSpec
from treadle.plugins.tensors import Signature, Tensors
from treadle.v1 import registry_pb2

RNG = np.random.default_rng(5)
ROWS = RNG.normal(size=(300, 4))
ROWS[:, 3] = RNG.integers(0, 4, size=300)
GAPS = np.where(ROWS > 1.2, np.nan, ROWS)
NOISE = RNG.normal(size=300) / 3
CLASS = (ROWS[:, 0] + NOISE > 0).astype(np.int64)
THREE = np.array(["early", "late", "on time"], dtype=object)[CLASS + (ROWS[:, 1] > 0)]
TARGET = ROWS @ [1.0, -2.0, 0.5, 0.1] * 1e4 + NOISE
PLUGINS = Plugins.load()
SIGNATURE = Signature((TensorSpec("features", "FP64", (-1, 4)),), (TensorSpec("prediction", "FP64", (-1,)),))


def faster(calls: Sequence[Callable[[], object]]) -> list[float]:
    """A measurement that finds the second of two calls ten times as fast."""
    for call in calls:
        call()
    return [10e-6, 1e-6]


def compiled(model: Any, folder: Path, rows: Any, plugins: Plugins = PLUGINS, **options: Any) -> registry_pb2.Manifest:
    """The manifest of a model that is packaged first, and compiled then, with a measurement that finds it faster."""
    measure = options.pop("measure", faster)
    manifest = save_model(model, folder, {"features": rows[:64]}, compile=False, plugins=plugins, **options)
    backend, source = plugins.backend(manifest.backend), source_of(manifest, folder)
    found = Compiler(plugins, measure).compile(model, backend, source, ManifestSample.of(manifest))
    manifest.compiled.CopyFrom(found)
    return manifest


def both(manifest: registry_pb2.Manifest, folder: Path) -> tuple[CheckedModel, CheckedModel]:
    """The original and its compiled form, loaded."""
    source = source_of(manifest, folder)
    backend = PLUGINS.backend(manifest.backend)
    return CheckedModel.load(backend, source), CheckedModel.load(
        PLUGINS.backend("onnx"), source_of_compiled(source, manifest.compiled)
    )


def assert_alike(manifest: registry_pb2.Manifest, folder: Path, rows: Any) -> None:
    """Both forms answer alike, in the same types."""
    original, fast = both(manifest, folder)
    wanted, got = original.predict({"features": rows}, len(rows)), fast.predict({"features": rows}, len(rows))
    assert list(got) == list(wanted)
    for name, array in wanted.items():
        assert (got[name].dtype, got[name].shape) == (array.dtype, array.shape)
    tolerance = Tolerance(manifest.compiled.relative_tolerance, manifest.compiled.absolute_tolerance)
    assert not compare(got, wanted, tolerance).wrong
    fast.close()


def sklearn_models() -> dict[str, tuple[Any, Any, Any]]:
    from sklearn import calibration, compose, ensemble, linear_model, neural_network, svm, tree
    from sklearn.impute import SimpleImputer
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    def one_hot(**settings: Any) -> Any:
        return compose.ColumnTransformer([("code", OneHotEncoder(**settings), [3])], remainder="passthrough")

    return {
        "logistic regression": (linear_model.LogisticRegression(), ROWS, CLASS),
        "logistic regression, three names": (linear_model.LogisticRegression(), ROWS, THREE),
        "logistic regression, true and false": (linear_model.LogisticRegression(), ROWS, CLASS > 0),
        "ridge": (linear_model.Ridge(), ROWS, TARGET),
        "tree": (tree.DecisionTreeClassifier(), ROWS, THREE),
        "forest": (ensemble.RandomForestClassifier(20, random_state=0), ROWS, CLASS),
        "forest, three names": (ensemble.RandomForestClassifier(10, max_depth=4, random_state=0), ROWS, THREE),
        "forest, missing values": (ensemble.RandomForestClassifier(10, random_state=0), GAPS, CLASS),
        "forest, regression": (ensemble.ExtraTreesRegressor(10, random_state=0), ROWS, TARGET),
        "boosting": (ensemble.GradientBoostingClassifier(n_estimators=8), ROWS, CLASS),
        "boosting, three names": (ensemble.GradientBoostingClassifier(n_estimators=4), ROWS, THREE),
        "boosting, regression": (ensemble.GradientBoostingRegressor(n_estimators=8), ROWS, TARGET),
        "histograms": (ensemble.HistGradientBoostingClassifier(max_iter=8), ROWS, CLASS),
        "histograms, missing values": (ensemble.HistGradientBoostingClassifier(max_iter=8), GAPS, THREE),
        "histograms, counts": (ensemble.HistGradientBoostingRegressor(loss="poisson", max_iter=8), ROWS, CLASS),
        "support vectors": (svm.SVC(), ROWS, CLASS),
        "support vectors, linear": (svm.LinearSVC(), ROWS, CLASS),
        "network": (neural_network.MLPClassifier((4,), max_iter=300, tol=1e-2), ROWS, CLASS),
        "calibrated": (calibration.CalibratedClassifierCV(linear_model.LogisticRegression(), cv=2), ROWS, CLASS),
        "scaler": (make_pipeline(StandardScaler(), linear_model.LogisticRegression()), ROWS, CLASS),
        "imputer": (make_pipeline(SimpleImputer(), linear_model.LogisticRegression()), GAPS, CLASS),
        "scaler, forest": (make_pipeline(StandardScaler(), ensemble.RandomForestClassifier(5)), ROWS, CLASS),
        "one-hot": (make_pipeline(one_hot(), linear_model.LogisticRegression()), ROWS, CLASS),
        "one-hot, forest": (
            make_pipeline(
                one_hot(handle_unknown="ignore", sparse_output=False),
                ensemble.RandomForestClassifier(5, random_state=0),
            ),
            ROWS,
            CLASS,
        ),
    }


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("name", list(sklearn_models()))
def test_scikit_learn(tmp_path: Path, name: str, dtype: Any) -> None:
    model, rows, labels = sklearn_models()[name]
    rows = rows.astype(dtype)
    model.fit(rows, labels)
    manifest = compiled(model, tmp_path / "model", rows, allow_nan=bool(np.isnan(rows).any()))
    if name == "scaler, forest" and dtype is np.float32:
        assert "the steps before its trees round otherwise in ONNX" in manifest.compiled.reason
        return
    assert not manifest.compiled.reason
    assert manifest.compiled.rows_checked >= 64 + 256
    assert_alike(manifest, tmp_path / "model", rows)


def booster_models() -> dict[str, tuple[Any, Any, Any]]:
    from lightgbm import LGBMClassifier, LGBMRegressor
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from xgboost import XGBClassifier, XGBRegressor

    few: dict[str, Any] = {"n_estimators": 6, "n_jobs": 1}
    quiet: dict[str, Any] = few | {"verbose": -1}
    return {
        "xgboost": (XGBClassifier(**few), ROWS, CLASS),
        "xgboost, three classes": (XGBClassifier(**few), ROWS, CLASS + (ROWS[:, 1] > 0)),
        "xgboost, missing values": (XGBClassifier(**few), GAPS, CLASS),
        "xgboost, regression": (XGBRegressor(**few), ROWS, TARGET),
        "xgboost, counts": (XGBRegressor(objective="count:poisson", **few), ROWS, CLASS),
        "lightgbm": (LGBMClassifier(**quiet), ROWS, CLASS),
        "lightgbm, three names": (LGBMClassifier(**quiet), ROWS, THREE),
        "lightgbm, one against all": (LGBMClassifier(objective="multiclassova", **quiet), ROWS, THREE),
        "lightgbm, missing values": (LGBMClassifier(**quiet), GAPS, CLASS),
        "lightgbm, regression": (LGBMRegressor(**quiet), ROWS, TARGET),
        "lightgbm, counts": (LGBMRegressor(objective="poisson", **quiet), ROWS, CLASS),
        "scaler, xgboost": (make_pipeline(StandardScaler(), XGBClassifier(**few)), ROWS, CLASS),
        "scaler, lightgbm": (make_pipeline(StandardScaler(), LGBMClassifier(**quiet)), ROWS, THREE),
    }


@pytest.mark.parametrize("name", list(booster_models()))
def test_boosters(tmp_path: Path, name: str) -> None:
    model, rows, labels = booster_models()[name]
    model.fit(rows, labels)
    manifest = compiled(model, tmp_path / "model", rows, allow_nan=bool(np.isnan(rows).any()))
    assert not manifest.compiled.reason
    assert_alike(manifest, tmp_path / "model", rows)


def test_trees_after_the_best_round_are_left_out(tmp_path: Path) -> None:
    from xgboost import XGBRegressor

    model = XGBRegressor(n_estimators=40, early_stopping_rounds=3, n_jobs=1)
    model.fit(ROWS[:200], NOISE[:200], eval_set=[(ROWS[200:], NOISE[200:])], verbose=False)
    manifest = compiled(model, tmp_path / "model", ROWS)
    assert not manifest.compiled.reason
    assert_alike(manifest, tmp_path / "model", ROWS)


def test_torch(tmp_path: Path) -> None:
    import torch

    class Network(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Dropout(), torch.nn.Linear(8, 3))

        def forward(self, features: torch.Tensor) -> dict[str, torch.Tensor]:
            probability = torch.softmax(self.layers(torch.nan_to_num(features)), dim=1)
            return {"probability": probability, "label": probability.argmax(dim=1)}

    model = Network()
    rows = GAPS.astype(np.float32)
    manifest = compiled(model, tmp_path / "model", rows, allow_nan=True)
    assert not manifest.compiled.reason
    assert model.training
    assert_alike(manifest, tmp_path / "model", rows)


def test_a_pipeline_that_ends_in_a_booster_is_stored_without_trusting_it(tmp_path: Path) -> None:
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler
    from xgboost import XGBClassifier

    model = make_pipeline(StandardScaler(), XGBClassifier(n_estimators=3, n_jobs=1)).fit(ROWS, CLASS)
    manifest = save_model(model, tmp_path / "model", {"features": ROWS}, compile=False)
    files = [file.path for file in manifest.files]
    assert files == ["model.skops", "xgboost/model.ubj", "xgboost/model.ubj.sha256"]
    answer = load_package(tmp_path / "model").predict({"features": ROWS})
    assert np.array_equal(answer["probability"], model.predict_proba(ROWS))
    sparse = make_pipeline(OneHotEncoder(handle_unknown="ignore"), XGBClassifier(n_estimators=3)).fit(ROWS, CLASS)
    with pytest.raises(InvalidInput, match="a sparse matrix, of which boosters take zeros for missing"):
        save_model(sparse, tmp_path / "sparse", {"features": ROWS})


def test_several_inputs_of_several_types_are_put_side_by_side(tmp_path: Path) -> None:
    from sklearn.ensemble import HistGradientBoostingRegressor

    model = HistGradientBoostingRegressor(max_iter=5).fit(ROWS, TARGET)
    sample: dict[str, Any] = {"first": ROWS[:, 0], "next": ROWS[:, 1:3].astype(np.float32), "code": ROWS[:, 3] > 1}
    manifest = save_model(model, tmp_path / "model", sample, compile=False)
    source, backend = source_of(manifest, tmp_path / "model"), PLUGINS.backend("sklearn")
    found = Compiler(PLUGINS, faster).compile(model, backend, source, ManifestSample.of(manifest))
    assert not found.reason
    fast = load_verified(PLUGINS.backend("onnx"), source_of_compiled(source, found), ManifestSample.of(manifest))
    wanted = CheckedModel.load(backend, source).predict(sample, 300)["prediction"]
    assert np.allclose(fast.predict(sample, 300)["prediction"], wanted, rtol=1e-6)


def test_what_was_found_is_in_the_manifest(tmp_path: Path) -> None:
    from sklearn.ensemble import RandomForestClassifier

    model = RandomForestClassifier(60, random_state=0).fit(ROWS, CLASS)
    manifest = save_model(model, tmp_path / "model", {"features": ROWS[:64]})
    found = manifest.compiled
    assert (found.reason, found.backend, found.folder) == ("", "onnx", "compiled")
    assert (found.relative_tolerance, found.absolute_tolerance) == (1e-5, 1e-6)
    assert found.rows_checked == 64 + 3 * 256
    assert found.largest_difference <= 1e-7
    assert [speed.rows for speed in found.speeds] == [1, 64]
    assert [file.path for file in manifest.files] == ["compiled/model.onnx", "model.skops"]
    assert read_package(tmp_path / "model") == manifest


@pytest.mark.parametrize("size", [1e-10, 1.0, 1e10])
def test_the_tolerance_goes_by_the_size_of_the_outputs(tmp_path: Path, size: float) -> None:
    from sklearn.linear_model import Ridge

    model = Ridge().fit(ROWS, TARGET * size)
    found = compiled(model, tmp_path / "model", ROWS).compiled
    assert found.relative_tolerance == 1e-5
    assert found.absolute_tolerance == pytest.approx(1e-6 * np.abs(model.predict(ROWS[:64])).max())


def test_it_can_be_switched_off(tmp_path: Path) -> None:
    from sklearn.linear_model import Ridge

    manifest = save_model(Ridge().fit(ROWS, TARGET), tmp_path / "model", {"features": ROWS[:9]}, compile=False)
    assert manifest.compiled.reason == "switched off with compile=False"
    assert [file.path for file in manifest.files] == ["model.skops"]


class TestReasons:
    """Why an original serves itself. Nothing of the compiled form is left then."""

    def reason(self, model: Any, folder: Path, **options: Any) -> str:
        manifest = compiled(model, folder, ROWS, **options)
        assert not manifest.compiled.backend
        assert not (folder / "compiled").exists()
        return manifest.compiled.reason

    def test_it_does_not_convert(self, tmp_path: Path) -> None:
        from lightgbm import LGBMRegressor
        from sklearn.dummy import DummyRegressor
        from sklearn.ensemble import GradientBoostingRegressor
        from sklearn.linear_model import Ridge
        from xgboost import XGBRegressor

        reasons = {
            "it starts from a Ridge": GradientBoostingRegressor(n_estimators=3, init=Ridge()),
            "skl2onnx cannot convert it": DummyRegressor(),
            "booster dart weighs its trees": XGBRegressor(n_estimators=3, booster="dart", n_jobs=1),
            "its leaves hold linear models": LGBMRegressor(n_estimators=3, linear_tree=True, verbose=-1, n_jobs=1),
            "it predicts the root": LGBMRegressor(n_estimators=3, reg_sqrt=True, verbose=-1, n_jobs=1),
        }
        for index, (words, model) in enumerate(reasons.items()):
            assert words in self.reason(model.fit(ROWS, TARGET), tmp_path / str(index))

    def test_trees_behind_steps_that_round_otherwise(self, tmp_path: Path) -> None:
        from sklearn.ensemble import AdaBoostClassifier
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        model = make_pipeline(StandardScaler(), AdaBoostClassifier(n_estimators=3)).fit(ROWS, CLASS)
        assert "behind steps of which nothing shows" in self.reason(model, tmp_path / "model")

    def test_it_is_not_faster(self, tmp_path: Path) -> None:
        from sklearn.linear_model import Ridge

        told = self.reason(Ridge().fit(ROWS, TARGET), tmp_path / "one", measure=lambda calls: [1e-5, 0.9e-5])
        assert told == "its ONNX form is not faster: 1.1× as fast for 1 row, 1.1× as fast for 64 rows"
        times = iter([(2e-5, 1e-5), (2e-5, 3e-5)])
        told = self.reason(Ridge().fit(ROWS, TARGET), tmp_path / "batch", measure=lambda calls: next(times))
        assert told == "its ONNX form is not faster: 2.0× as fast for 1 row, 0.7× as fast for 64 rows"

    def test_backends_without_an_onnx_form(self, tmp_path: Path) -> None:
        from treadle.plugins.backends.python import echo

        manifest = save_model(echo, tmp_path / "python", {"x": np.arange(3.0)})
        assert manifest.compiled.reason == "models of backend 'python' have no ONNX form"
        example = PLUGINS.backend("onnx").example()
        assert example is not None
        manifest = save_model(example.model, tmp_path / "onnx", example.sample)
        assert manifest.compiled.reason == "it is ONNX already"

    def test_without_onnx_runtime(self, tmp_path: Path) -> None:
        from sklearn.linear_model import Ridge

        plugins = Plugins.load(blocked=["onnx"])
        told = self.reason(Ridge().fit(ROWS, TARGET), tmp_path / "model", plugins=plugins)
        assert told == "plugin 'onnx' cannot be used: it is on the list of blocked plugins"

    def test_without_a_converter(self) -> None:
        with pytest.raises(
            NotCompiled, match=r"needs no_such_converter, not installed.*pip install 'treadle\[compile\]'"
        ):
            require_modules("onnx", "no_such_converter")


GRAPH = """<ir_version: 8, opset_import: ["": 17, "ai.onnx.ml": 3]>
    twisted ({type}[rows, 4] {name}) => ({out}[rows] prediction) {{
        first = Constant <value = int64[1] {{0}}> ()
        column = Gather <axis = 1> ({name}, first)
        flat = Constant <value = int64[1] {{-1}}> ()
        plain = Reshape (column, flat)
        {body}
    }}"""


SQUARES = "prediction = Mul (plain, plain)"
"""Right for 0 and 1."""
SAME = "prediction = Identity (plain)"
BITS = RNG.integers(0, 2, size=(64, 4)).astype(np.float64)


class Column(LoadedModel):
    """Answers with the first column, and refuses rows whose last lies between 0 and 1."""

    def predict(self, inputs: Tensors) -> Tensors:
        last = inputs["features"][:, 3]
        if ((last > 0) & (last < 1)).any():
            raise InvalidInput("a category that it never saw")
        return {"prediction": inputs["features"][:, 0].copy()}


class TwistedBackend(ModelBackend):
    """A plugin from outside, with an ONNX form that a test hands to it."""

    name = "twisted"

    def __init__(self, form: Callable[[], bytes]) -> None:
        self.form = form

    def can_save(self, model: Any) -> bool:
        return bool(model == "twisted")

    def save(self, model: Any, folder: Path, sample: Tensors) -> None:
        (folder / "model.txt").write_text("twisted")

    def load(self, source: ModelSource) -> LoadedModel:
        return Column()

    def to_onnx(self, model: Any, sample: Tensors, source: ModelSource) -> bytes:
        assert (source.folder / "model.txt").exists()
        assert [spec.name for spec in source.signature.outputs] == ["prediction"]
        return self.form()


def form(body: str, *, kind: str = "double", out: str = "double", name: str = "features") -> bytes:
    """An ONNX model of four columns."""
    from onnx import parser

    model = parser.parse_model(GRAPH.format(type=kind, out=out, name=name, body=body))
    return bytes(model.SerializeToString())


class TestTheHook:
    """An outside backend offers an ONNX form; the checks are Treadle's."""

    def found(self, folder: Path, offer: Callable[[], bytes], rows: Any) -> registry_pb2.Compiled:
        class Plugin:
            @hookimpl
            def treadle_model_backends(self, register: Any) -> None:
                register(TwistedBackend(offer))

        return compiled("twisted", folder, rows, Plugins.load(modules={"twisted": Plugin()})).compiled

    def test_a_form_that_answers_alike_is_kept(self, tmp_path: Path) -> None:
        found = self.found(tmp_path / "model", lambda: form(SAME), np.ones((3, 4)))
        assert (found.reason, found.backend) == ("", "onnx")

    @pytest.mark.parametrize(
        ("offered", "words"),
        [
            (form("prediction = Add (plain, plain)"), "its ONNX form: output 'prediction' differs from what the model"),
            (form(SQUARES), "its ONNX form differs on random rows within the sample's ranges: 'prediction' in 2"),
            (form("prediction = Cast <to = 1> (plain)", out="float"), "dtype is float32, FP64 is wanted"),
            (form("prediction = Cast <to = 11> (plain)", kind="float"), r"is FP64, the graph wants tensor\(float\)"),
            (form(SAME, name="x"), "not in the graph, whose inputs are x"),
            (b"no model", r"model\.onnx cannot be loaded|Error parsing"),
        ],
    )
    def test_a_form_that_does_not_is_not(self, tmp_path: Path, offered: bytes, words: str) -> None:
        rows = np.column_stack([BITS[:, :3], np.ones(64)])
        found = self.found(tmp_path / "model", lambda: offered, rows)
        assert re.search(words, found.reason)
        assert not (tmp_path / "model" / "compiled").exists()

    def test_what_the_original_refuses_it_must_refuse(self, tmp_path: Path) -> None:
        found = self.found(tmp_path / "model", lambda: form(SAME), BITS)
        assert found.reason == (
            "the original refuses random rows within the sample's ranges, the ONNX form answers them"
        )

    def test_what_the_hook_raises_is_the_reason(self, tmp_path: Path) -> None:
        def divides() -> bytes:
            raise ZeroDivisionError("by zero")

        assert self.found(tmp_path / "model", divides, BITS).reason == (
            "converting it raised ZeroDivisionError: by zero"
        )

    def test_files_of_that_name_are_the_backends_own(self, tmp_path: Path) -> None:
        (tmp_path / "compiled").mkdir()
        source = ModelSource(tmp_path, SIGNATURE, {}, 1)
        found = Compiler(PLUGINS, faster).compile(
            "twisted", TwistedBackend(lambda: form(SAME)), source, ManifestSample()
        )
        assert found.reason == "its own files use the name 'compiled'"
        assert (tmp_path / "compiled").exists()


def test_thresholds_a_rounding_off_are_found(tmp_path: Path) -> None:
    """skl2onnx compares FP64 inputs as they are; scikit-learn's trees round them to FP32 first."""
    from skl2onnx import to_onnx
    from skl2onnx.common.data_types import DoubleTensorType
    from sklearn.ensemble import RandomForestClassifier

    from treadle.plugins.backends.sklearn import SklearnBackend

    model = RandomForestClassifier(10, random_state=0).fit(ROWS, CLASS)

    class Naive(SklearnBackend):
        def to_onnx(self, model: Any, sample: Tensors, source: ModelSource) -> bytes:
            kind = [("features", DoubleTensorType([None, 4]))]
            made = to_onnx(model, initial_types=kind, options={"zipmap": False})
            made.graph.output[1].name = "probability"
            made.graph.node[-1].output[1] = "probability"
            return bytes(_with_double_probability(made).SerializeToString())

    manifest = save_model(model, tmp_path / "model", {"features": ROWS[:64]}, compile=False)
    source = source_of(manifest, tmp_path / "model")
    found = Compiler(PLUGINS, faster).compile(model, Naive(), source, ManifestSample.of(manifest))
    assert "differs on rows at the thresholds of its trees" in found.reason


def _with_double_probability(model: Any) -> Any:
    from onnx import TensorProto, helper

    for node in model.graph.node:
        node.output[:] = ["narrow" if name == "probability" else name for name in node.output]
    model.graph.node.append(helper.make_node("Cast", ["narrow"], ["probability"], to=TensorProto.DOUBLE))
    model.graph.output[1].type.tensor_type.elem_type = TensorProto.DOUBLE
    return model
