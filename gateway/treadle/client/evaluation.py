"""Evaluation of model versions on datasets, live metrics of deployments, and labels."""

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Any

import numpy as np

from treadle.client.tables import Array, to_micros, to_optional_micros
from treadle.client.versions import RegistryConnection
from treadle.core.column import Column
from treadle.core.errors import Internal, InvalidInput
from treadle.rpc.codec.columns import encode
from treadle.v1 import evaluation_pb2, evaluation_pb2_grpc

TASKS: Mapping[str, evaluation_pb2.Task.ValueType] = {
    "binary": evaluation_pb2.TASK_BINARY_CLASSIFICATION,
    "multiclass": evaluation_pb2.TASK_MULTICLASS_CLASSIFICATION,
    "regression": evaluation_pb2.TASK_REGRESSION,
}
"""Task names, and the `Task` of the contract."""
_LABELS_PER_MESSAGE = 4096


@dataclass(frozen=True)
class RecordLabelsResult:
    """Rows recorded by the ledger, and rows that it had already."""

    rows: int
    duplicates: int


class Evaluation(RegistryConnection):
    """The evaluation methods of a client."""

    @cached_property
    def _evaluation(self) -> "evaluation_pb2_grpc.EvaluationServiceAsyncStub":
        return evaluation_pb2_grpc.EvaluationServiceStub(self.channel)

    async def evaluate(
        self,
        version: str,
        dataset: str,
        *,
        label: str,
        task: str = "binary",
        slices: Sequence[str] = (),
        score_output: str = "",
        baseline: str = "",
        gate: evaluation_pb2.GatePolicy | None = None,
        dataset_name: str = "",
        bootstrap_resamples: int = 0,
        seed: int = 0,
        progress: Callable[[evaluation_pb2.Progress], None] | None = None,
    ) -> evaluation_pb2.EvaluationReport:
        """Runs a version ("model/3", "model@alias") over a Parquet dataset and scores it, also against a baseline.

        `dataset` is a path as the evaluation service sees it; `task` one of "binary", "multiclass", "regression".
        The report is stored with the version; its `gate.verdict` says whether the policy was met.
        """
        request = evaluation_pb2.EvaluateRequest(
            ref=await self._resolve(version),
            dataset=evaluation_pb2.Dataset(path=dataset, label_column=label, slice_columns=slices, name=dataset_name),
            task=to_task(task),
            score_output=score_output,
            baseline=await self._resolve(baseline) if baseline else None,
            gate=gate,
            bootstrap_resamples=bootstrap_resamples,
            seed=seed,
        )
        async for event in self._evaluation.Evaluate(request):
            if event.WhichOneof("event") == "report":
                return event.report
            if progress is not None:
                progress(event.progress)
        raise Internal("the evaluation ended without a report")

    async def live_metrics(
        self,
        deployment: str,
        *,
        version: str = "",
        task: str = "binary",
        score_output: str = "",
        since: datetime | None = None,
        until: datetime | None = None,
        include_fallbacks: bool = False,
    ) -> list[evaluation_pb2.LiveMetrics]:
        """Metrics of recorded predictions against their labels: one for each version, then one for all versions."""
        request = evaluation_pb2.GetLiveMetricsRequest(
            deployment=deployment,
            model=await self._resolve(version) if version else None,
            from_micros=to_optional_micros(since),
            to_micros=to_optional_micros(until),
            task=to_task(task),
            score_output=score_output,
            include_fallbacks=include_fallbacks,
        )
        return list((await self._evaluation.GetLiveMetrics(request)).versions)

    async def record_labels(self, prediction_ids: Sequence[str], labels: Any, at: Any = None) -> RecordLabelsResult:
        """Records the true outcomes of predictions, before or after the ledger has the predictions.

        `labels` is numeric, one for each id. `at` is when the truth became known: one moment or N; now if None.
        A later label for the same prediction replaces the earlier one.
        """
        values = np.asarray(labels)
        if values.shape != (len(prediction_ids),):
            raise InvalidInput(f"{len(prediction_ids)} prediction ids need as many labels, not shape {values.shape}")
        moments = to_micros(np.datetime64("now", "us") if at is None else at, len(values))
        answer = await self._evaluation.RecordLabels(_label_batches(prediction_ids, values, moments))
        return RecordLabelsResult(answer.rows_recorded, answer.rows_duplicate)


def to_task(name: str) -> evaluation_pb2.Task.ValueType:
    """The `Task` of "binary", "multiclass" or "regression"; InvalidInput otherwise."""
    if name not in TASKS:
        raise InvalidInput(f"no task {name!r}; one of {', '.join(TASKS)}")
    return TASKS[name]


async def _label_batches(
    ids: Sequence[str], labels: Array, moments: Sequence[int]
) -> AsyncIterator[evaluation_pb2.LabelBatch]:
    for start in range(0, len(ids), _LABELS_PER_MESSAGE):
        part = slice(start, start + _LABELS_PER_MESSAGE)
        column = encode(Column.of("label", labels[part]))
        yield evaluation_pb2.LabelBatch(prediction_ids=ids[part], labels=column, at_micros=moments[part])
