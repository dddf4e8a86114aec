"""Runs a version on the rows of a batch: its inputs assembled, one call, its outputs checked."""

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from treadle.core.column import Column
from treadle.core.errors import InvalidInput, Unavailable, Violation
from treadle.gateway.pipeline.batch.feature_batch import MISSING, NULL, STALE, FeatureValues
from treadle.gateway.pipeline.batch.request_batch import RequestBatch, Tensors
from treadle.gateway.pipeline.stages.stage import Handler
from treadle.gateway.pipeline.stages.upstream_errors import error_prefix
from treadle.gateway.policy.deployments import ServedVersion
from treadle.gateway.upstream.ports import InferenceClient
from treadle.plugins.assembly import InputColumn, ModelInputs, assemble, from_tensors


async def assemble_inputs(batch: RequestBatch, next_stage: Handler) -> None:
    """Stage: sets `inputs` and `stale`. Requests whose rows the version cannot take fail, and the others go on."""
    names = _output_names(batch)
    unknown = [name for name in batch.wanted_outputs if name not in names]
    if unknown:
        batch.fail_all(_unknown_outputs(unknown, names))
        return
    if batch.step.ref is not None:
        inputs = _inputs(batch, batch.deployment.version(batch.step.ref))
        batch.inputs = inputs.tensors
        if inputs.refusals:
            served = _served(batch, inputs)
            if not served:
                return
            batch = batch.take(served)
    await next_stage(batch)


def _output_names(batch: RequestBatch) -> Sequence[str]:
    step = batch.step
    if step.ref is None:
        return [column.name for column in step.constant]
    return [spec.name for spec in batch.deployment.version(step.ref).signature.outputs]


def _unknown_outputs(unknown: Sequence[str], known: Sequence[str]) -> InvalidInput:
    what = f"is no output; there are {', '.join(known)}"
    violations = [Violation(f"outputs[{name}]", what) for name in unknown]
    return InvalidInput(f"outputs: {', '.join(map(repr, unknown))} {what}", violations)


def _inputs(batch: RequestBatch, version: ServedVersion) -> ModelInputs:
    if batch.tensors:
        return from_tensors(version.signature, batch.tensors)
    columns, batch.stale = _input_columns(batch, version)
    return assemble(version.signature, columns, batch.rows)


def _input_columns(
    batch: RequestBatch, version: ServedVersion
) -> tuple[Mapping[str, InputColumn], Mapping[str, NDArray[np.bool_]]]:
    """The columns that the version needs, and which of them are stale in which rows.

    What the caller sends wins over what was looked up, so a request can override a feature.
    """
    columns: dict[str, InputColumn] = {}
    stale: dict[str, NDArray[np.bool_]] = {}
    found = {} if batch.features is None else batch.features.features
    for name in version.needs:
        sent = batch.entities.get(name) or batch.context.get(name)
        if sent is not None:
            columns[name] = InputColumn(sent)
        elif name in found:
            columns[name] = _feature_column(found[name], strict=batch.deployment.strict)
            if not found[name].is_present and (found[name].statuses == STALE).any():
                stale[name] = found[name].statuses == STALE
    return columns, stale


def _feature_column(feature: FeatureValues, *, strict: bool) -> InputColumn:
    if feature.is_present:
        return InputColumn(feature.column, source="features")
    unusable = (feature.statuses == NULL) | (feature.statuses == MISSING)
    if strict:
        unusable |= feature.statuses == STALE
    return InputColumn(feature.column, unusable if unusable.any() else None, source="features")


def _served(batch: RequestBatch, inputs: ModelInputs) -> Sequence[int]:
    """Positions of the requests whose rows the version takes; the others fail."""
    served = []
    for index, (start, stop) in enumerate(pairwise(batch.starts)):
        error = inputs.refusal(start, stop)
        if error is None:
            served.append(index)
        else:
            batch.fail(index, error)
    return served


class RunInference:
    """Sets `outputs`: those of the version, or the constant of the step. `clock` is the pipeline's."""

    def __init__(self, client: InferenceClient, clock: Callable[[], float]) -> None:
        self._client = client
        self._clock = clock

    async def __call__(self, batch: RequestBatch, _: Handler) -> None:
        """Stage."""
        ref = batch.step.ref
        if ref is None:
            batch.outputs = _constant(batch)
            return
        timeout = max(0.0, max(batch.deadlines) - self._clock())
        with error_prefix(str(ref)):
            found = await self._client.infer(ref, batch.inputs, batch.wanted_outputs, timeout)
        batch.outputs = _outputs(batch, batch.deployment.version(ref), found)


def _constant(batch: RequestBatch) -> Sequence[Column]:
    """The constant's one row, as often as there are rows."""
    index = np.zeros(batch.rows, dtype=np.int64)
    wanted = batch.wanted_outputs
    return [column.take(index) for column in batch.step.constant if not wanted or column.name in wanted]


def _outputs(batch: RequestBatch, version: ServedVersion, found: Tensors) -> Sequence[Column]:
    columns = []
    for spec in version.signature.outputs:
        if batch.wanted_outputs and spec.name not in batch.wanted_outputs:
            continue
        values = found.get(spec.name)
        if values is None or len(values) != batch.rows:
            raise Unavailable(f"{version.ref}: output {spec.name!r} is missing or has not {batch.rows} rows")
        columns.append(Column(spec.name, spec.dtype, values))
    return columns
