"""Laws of compiling: for any small model and any rows, both forms answer alike; no rounding moves a row aside."""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from treadle.plugins.backends.onnx_export.boosters import _zero_adjusted
from treadle.plugins.backends.onnx_export.forest import fp64_thresholds
from treadle.plugins.checked import CheckedModel, ManifestSample
from treadle.plugins.compiling.comparing import Tolerance, compare
from treadle.plugins.compiling.compiler import Compiler, source_of_compiled
from treadle.plugins.compiling.probing import ROWS, SplitThreshold, probes
from treadle.plugins.compiling.timing import interleaved_timing
from treadle.plugins.manager import Plugins
from treadle.plugins.packaging import save_model, source_of
from treadle.plugins.tensor_spec import TensorSpec
from treadle.plugins.tensors import Signature

PLUGINS = Plugins.load()
FINITE = st.floats(-1e30, 1e30, allow_nan=False)


def models() -> dict[str, Any]:
    from lightgbm import LGBMClassifier
    from sklearn import ensemble, linear_model, tree
    from xgboost import XGBClassifier

    return {
        "logistic": lambda seed: linear_model.LogisticRegression(C=1 + seed % 5),
        "tree": lambda seed: tree.DecisionTreeClassifier(random_state=seed, max_depth=1 + seed % 6),
        "forest": lambda seed: ensemble.RandomForestClassifier(1 + seed % 7, random_state=seed),
        "boosting": lambda seed: ensemble.GradientBoostingClassifier(n_estimators=1 + seed % 5, random_state=seed),
        "histograms": lambda seed: ensemble.HistGradientBoostingClassifier(max_iter=1 + seed % 5, min_samples_leaf=3),
        "xgboost": lambda seed: XGBClassifier(n_estimators=1 + seed % 5, n_jobs=1, random_state=seed),
        "lightgbm": lambda seed: LGBMClassifier(n_estimators=1 + seed % 5, n_jobs=1, verbose=-1, min_child_samples=3),
    }


@pytest.mark.parametrize("kind", list(models()))
@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 10_000), classes=st.integers(2, 3), single=st.booleans())
def test_compiled_answers_as_the_original_on_rows_it_was_never_checked_on(
    kind: str, seed: int, classes: int, single: bool
) -> None:
    rng = np.random.default_rng(seed)
    labels = np.arange(60) % classes
    wide = rng.normal(size=(60, 3)).round(seed % 4)
    wide[:, 0] += labels
    rows = wide.astype(np.float32 if single else np.float64)
    model = models()[kind](seed).fit(rows, labels)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "model"
        manifest = save_model(model, folder, {"features": rows[:30]}, compile=False)
        backend, source = PLUGINS.backend(manifest.backend), source_of(manifest, folder)
        found = Compiler(PLUGINS, lambda calls: [2.0, 1.0]).compile(model, backend, source, ManifestSample.of(manifest))
        assert not found.reason
        original = CheckedModel.load(backend, source)
        fast = CheckedModel.load(PLUGINS.backend("onnx"), source_of_compiled(source, found))
        fresh = np.concatenate([rows, rng.uniform(-5, 5, size=(200, 3)).astype(rows.dtype)])
        tolerance = Tolerance(found.relative_tolerance, found.absolute_tolerance)
        compiled, wanted = (each.predict({"features": fresh}, len(fresh)) for each in (fast, original))
        assert not compare(compiled, wanted, tolerance).wrong


@given(value=FINITE, threshold=FINITE, beside=st.integers(-2, 2))
def test_a_shifted_threshold_tells_apart_what_rounding_to_fp32_tells_apart(
    value: float, threshold: float, beside: int
) -> None:
    (shifted,) = fp64_thresholds(np.array([threshold]))
    near = shifted
    for _ in range(abs(beside)):
        near = np.nextafter(near, np.inf * beside)
    for number in (np.float64(value), np.float64(threshold), near):
        assert (np.float64(np.float32(number)) <= threshold) == (number <= shifted)


@given(value=st.floats(-4e-35, 4e-35), threshold=st.floats(-4e-35, 4e-35))
def test_a_threshold_around_zero_tells_apart_what_lightgbm_does(value: float, threshold: float) -> None:
    seen = 0.0 if abs(value) <= float(np.float32(1e-35)) else value
    assert (seen <= threshold) == (value <= _zero_adjusted(threshold))


@given(
    wanted=st.lists(st.floats(-100, 100), min_size=1, max_size=5),
    share=st.floats(-0.99, 0.99),
    relative=st.floats(0, 0.1),
    absolute=st.floats(1e-6, 0.1),
)
def test_floats_within_the_tolerance_are_alike(
    wanted: list[float], share: float, relative: float, absolute: float
) -> None:
    array, tolerance = np.array(wanted), Tolerance(relative, absolute)
    most = absolute + relative * np.abs(array)
    assert not compare({"y": array + share * most}, {"y": array}, tolerance).wrong
    beyond = compare({"y": array + 1.01 * most}, {"y": array}, tolerance)
    assert beyond.wrong == {"y": len(wanted)}
    assert beyond.largest == pytest.approx(1.01 * most.max())


TIGHT = Tolerance(1e-5, 1e-6)


def test_labels_may_differ_only_where_classes_tie() -> None:
    probability = np.array([[0.5, 0.5], [0.500001, 0.499999], [0.6, 0.4]])
    wanted = {"probability": probability, "label": np.array([0, 0, 0])}
    found = compare({"probability": probability, "label": np.array([1, 1, 1])}, wanted, TIGHT)
    assert (dict(found.wrong), found.ties) == ({"label": 1}, 2)
    names = {"label": np.array(["a", "b"], dtype=object)}
    assert compare({"label": np.array(["a", "c"], dtype=object)}, names, TIGHT).wrong == {"label": 1}


def test_missing_outputs_and_other_shapes_are_wrong_in_every_row() -> None:
    wanted = {"y": np.zeros(3)}
    assert compare({}, wanted, TIGHT).wrong == {"y": 3}
    assert compare({"y": np.zeros((3, 1))}, wanted, TIGHT).wrong == {"y": 3}
    assert not compare({"y": np.full(3, np.nan)}, {"y": np.full(3, np.nan)}, TIGHT).wrong


SIGNATURE = Signature(
    (
        TensorSpec("a", "FP64", (-1, 2), allow_nan=True),
        TensorSpec("b", "INT64", (-1,)),
        TensorSpec("c", "STRING", (-1,)),
        TensorSpec("d", "BOOL", (-1,)),
    ),
    (),
)
SAMPLE: dict[str, Any] = {
    "a": np.array([[0.0, 10.0], [1.0, 20.0], [np.nan, 15.0]]),
    "b": np.array([3, 7, 5]),
    "c": np.array(["x", "y", "y"], dtype=object),
    "d": np.array([True, False, True]),
}


@settings(max_examples=20)
@given(seed=st.integers(0, 1000))
def test_random_rows_stay_within_the_sample(seed: int) -> None:
    near = [SplitThreshold(1, 12.5), SplitThreshold(0, 0.5), SplitThreshold(99, 1.0)]
    sets = dict(probes(SIGNATURE, SAMPLE, near, np.random.default_rng(seed)))
    assert len(sets) == 4
    for rows in sets.values():
        assert SIGNATURE.check_inputs(rows) == ROWS
        assert set(rows["c"]) <= {"x", "y"}
        assert rows["b"].min() >= 3
        assert rows["b"].max() <= 7
        assert np.nanmin(rows["a"][:, 0]) >= 0
        assert np.nanmax(rows["a"][:, 1]) <= 20
    assert np.isnan(sets["rows with missing values"]["a"]).mean() > 0.1
    assert (np.abs(sets["rows at the thresholds of its trees"]["a"][:, 1] - 12.5) < 1e-5).any()


def test_calls_are_timed_in_turns_by_their_medians() -> None:
    now, order = [0.0], []

    def call(name: str, *seconds: float) -> Any:
        left = list(seconds)

        def run() -> None:
            order.append(name)
            now[0] += left.pop(0) if left else seconds[-1]

        return run

    slow, fast = interleaved_timing(
        [call("slow", 9.0, 3.0, 3.0, 8.0), call("fast", 9.0, 1.0, 2.0, 1.0)], lambda: now[0], seconds=0
    )
    assert (slow, fast) == (3.0, 1.0)
    assert order == ["slow", "fast"] * 4  # once to warm up, then three rounds
