"""Compiling of a model to ONNX when it is packaged; the compiled form is kept only if it is equivalent and faster.

Equivalent: on the sample and on random rows within its ranges, floats are within the tolerance and other values equal
(see `comparing`), and rows that the original refuses are refused. The files of the original stay in the folder.
"""

import shutil
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from treadle.core.errors import InvalidInput, NotFound, TreadleError
from treadle.plugins.backend import ModelBackend, ModelSource
from treadle.plugins.checked import CheckedModel, ManifestSample, load_verified
from treadle.plugins.compiling.comparing import Tolerance, compare
from treadle.plugins.compiling.probing import SplitThreshold, probes
from treadle.plugins.compiling.timing import interleaved_timing
from treadle.plugins.errors import BackendFault, NotCompiled
from treadle.plugins.manager import Plugins
from treadle.plugins.tensors import Array, Tensors
from treadle.v1 import registry_pb2

FOLDER = "compiled"
"""The folder of the compiled form in a model folder."""
BACKEND = "onnx"
RELATIVE_TOLERANCE = 1e-5
ABSOLUTE_TOLERANCE_FRACTION = 1e-6
"""The absolute tolerance as a fraction of the largest output of the sample: the error of FP32 where terms cancel."""
BATCH_ROWS = 64
MIN_SPEEDUP = 1.2
"""The speed-up that one row must reach. A batch may be slower by this factor at most."""
_TIMING_SECONDS = 0.15
_SEED = 7


Measure = Callable[[Sequence[Callable[[], object]]], Sequence[float]]
"""From several calls to the seconds that each takes."""


def _measure_interleaved(calls: Sequence[Callable[[], object]]) -> Sequence[float]:
    return interleaved_timing(calls, time.perf_counter, seconds=_TIMING_SECONDS)


@dataclass(frozen=True, slots=True)
class Compiler:
    """Compiles the model that a backend has stored in a folder."""

    plugins: Plugins
    measure: Measure = _measure_interleaved

    def compile(
        self, model: Any, backend: ModelBackend, source: ModelSource, sample: ManifestSample
    ) -> registry_pb2.Compiled:
        """Adds the compiled form to the folder and returns its description, or only the reason why there is none.

        Errors of the model or of a converter are such reasons and are not raised: the original can serve.
        """
        folder = source.folder / FOLDER
        if folder.exists():
            return registry_pb2.Compiled(reason=f"its own files use the name {FOLDER!r}")
        found = registry_pb2.Compiled()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # converters warn a lot; the comparison of the outputs decides
                self._try(model, backend, source, sample, found)
        except TreadleError as error:
            found.reason = error.message
        except Exception as error:  # converters may raise anything
            found.reason = f"converting it raised {type(error).__name__}: {_first_line(error)}"
        if found.reason:
            shutil.rmtree(folder, ignore_errors=True)
        return found

    def _try(
        self,
        model: Any,
        backend: ModelBackend,
        source: ModelSource,
        sample: ManifestSample,
        found: registry_pb2.Compiled,
    ) -> None:
        runner = self._runner()
        data = backend.to_onnx(model, sample.inputs, source)
        tolerance = tolerance_for(sample.outputs)
        found.relative_tolerance, found.absolute_tolerance = tolerance.relative, tolerance.absolute
        rng = np.random.default_rng(_SEED)
        sets = [("the sample", sample.inputs), *probes(source.signature, sample.inputs, thresholds(data), rng)]
        with (
            closing(_store_and_load(runner, data, source, sample, tolerance)) as compiled,
            closing(CheckedModel.load(backend, source)) as original,
        ):
            for what, rows in sets:
                _compare_forms(original, compiled, what, rows, tolerance, found)
            self._measure_speed(original, compiled, sample.inputs, found)
        found.backend, found.folder = BACKEND, FOLDER

    def _runner(self) -> ModelBackend:
        try:
            return self.plugins.backend(BACKEND)
        except NotFound as error:
            raise NotCompiled(error.message) from error

    def _measure_speed(
        self, original: CheckedModel, compiled: CheckedModel, sample: Tensors, found: registry_pb2.Compiled
    ) -> None:
        """Measures both forms; NotCompiled if the compiled form is not faster."""
        for rows in (1, BATCH_ROWS):
            inputs = repeat_rows(sample, rows)
            calls = [partial(model.predict, inputs, rows) for model in (original, compiled)]
            before, after = self.measure(calls)
            found.speeds.add(rows=rows, original_micros=before * 1e6, compiled_micros=after * 1e6)
        one, batch = found.speeds
        if (
            one.original_micros < MIN_SPEEDUP * one.compiled_micros
            or batch.original_micros * MIN_SPEEDUP < batch.compiled_micros
        ):
            raise NotCompiled(f"its ONNX form is not faster: {speed(one)}, {speed(batch)}")


def source_of_compiled(source: ModelSource, compiled: registry_pb2.Compiled) -> ModelSource:
    """The source of the compiled form of the model at `source`."""
    return ModelSource(
        source.folder / compiled.folder, source.signature, dict(compiled.backend_options), source.threads
    )


def speed(measured: registry_pb2.Speed) -> str:
    """A measured speed-up as text: "12.0× as fast for 1 row"."""
    rows = "1 row" if measured.rows == 1 else f"{measured.rows} rows"
    return f"{measured.original_micros / (measured.compiled_micros or 1e-9):.1f}× as fast for {rows}"


def tolerance_for(outputs: Tensors) -> Tolerance:
    """The tolerance for a model with these outputs of the sample."""
    sizes = [float(np.nanmax(np.abs(a), initial=0.0)) for a in outputs.values() if a.dtype.kind == "f"]
    return Tolerance(RELATIVE_TOLERANCE, ABSOLUTE_TOLERANCE_FRACTION * min(sizes, default=1.0))


def repeat_rows(sample: Tensors, rows: int) -> dict[str, Array]:
    """The sample, repeated or cut to `rows` rows."""
    return {name: np.ascontiguousarray(array[np.arange(rows) % len(array)]) for name, array in sample.items()}


def thresholds(data: bytes) -> list[SplitThreshold]:
    """The split thresholds of the trees in an ONNX model. Behind other steps, they do not refer to the inputs."""
    import onnx

    found: dict[SplitThreshold, None] = {}
    for node in onnx.load_from_string(data).graph.node:
        given = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
        if node.op_type not in {"TreeEnsembleRegressor", "TreeEnsembleClassifier"}:
            continue
        tensor = given.get("nodes_values_as_tensor")
        values = given.get("nodes_values", []) if tensor is None else onnx.numpy_helper.to_array(tensor)
        for column, value, mode in zip(given["nodes_featureids"], values, given["nodes_modes"], strict=True):
            if mode != b"LEAF" and np.isfinite(value):  # some trees split missing values from all others at infinity
                found[SplitThreshold(int(column), float(value))] = None
    return list(found)


def _store_and_load(
    runner: ModelBackend, data: bytes, source: ModelSource, sample: ManifestSample, tolerance: Tolerance
) -> CheckedModel:
    """Stores the compiled form and loads it, verified on the sample. NotCompiled if it fails."""
    folder = source.folder / FOLDER
    folder.mkdir()
    runner.save(data, folder, sample.inputs)
    try:
        return load_verified(runner, ModelSource(folder, source.signature, {}, source.threads), sample, tolerance)
    except BackendFault as error:
        raise NotCompiled(f"its ONNX form: {error.message}") from error
    except InvalidInput as error:
        details = "; ".join(f"{v.field}: {v.description}" for v in error.violations)
        raise NotCompiled(f"its ONNX form: {error.message} ({details})") from error


def _compare_forms(
    original: CheckedModel,
    compiled: CheckedModel,
    what: str,
    inputs: Tensors,
    tolerance: Tolerance,
    found: registry_pb2.Compiled,
) -> None:
    """Compares the outputs of both forms for the same rows; NotCompiled if they differ."""
    rows = len(next(iter(inputs.values())))
    wanted, got = _outputs_or_refusal(original, inputs, rows), _outputs_or_refusal(compiled, inputs, rows)
    if wanted is None or got is None:
        if (wanted is None) != (got is None):
            who, other = ("original", "ONNX form") if wanted is None else ("ONNX form", "original")
            raise NotCompiled(f"the {who} refuses {what}, the {other} answers them")
        return
    difference = compare(got, wanted, tolerance)
    found.largest_difference = max(found.largest_difference, difference.largest)
    found.rows_checked += rows
    found.ties += difference.ties
    if difference.wrong:
        outputs = ", ".join(f"{name!r} in {count} of {rows}" for name, count in difference.wrong.items())
        raise NotCompiled(f"its ONNX form differs on {what}: {outputs} (tolerance {tolerance})")


def _outputs_or_refusal(model: CheckedModel, inputs: Tensors, rows: int) -> Tensors | None:
    """The outputs for the rows; None if the model refuses them."""
    try:
        return model.predict(inputs, rows)
    except (InvalidInput, BackendFault):
        return None


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), "")[:200]
