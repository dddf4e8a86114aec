"""Evaluation: is a version good enough, better than what serves, and still right?"""

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import cached_property

from treadle.client.tables import to_micros
from treadle.client.versions import Versions
from treadle.rpc.errors import Internal, InvalidInput
from treadle.v1 import evaluation_pb2, evaluation_pb2_grpc

TASKS: Mapping[str, evaluation_pb2.Task.ValueType] = {
    "binary": evaluation_pb2.TASK_BINARY_CLASSIFICATION,
    "multiclass": evaluation_pb2.TASK_MULTICLASS_CLASSIFICATION,
    "regression": evaluation_pb2.TASK_REGRESSION,
}
"""What people write, and the contract's `Task`."""


class Evaluation(Versions):
    """The part of a client that has versions judged."""

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
        """Metrics of recorded predictions against the labels that have arrived: one for each version, then all."""
        request = evaluation_pb2.GetLiveMetricsRequest(
            deployment=deployment,
            model=await self._resolve(version) if version else None,
            from_micros=0 if since is None else to_micros(since, 1)[0],
            to_micros=0 if until is None else to_micros(until, 1)[0],
            task=to_task(task),
            score_output=score_output,
            include_fallbacks=include_fallbacks,
        )
        return list((await self._evaluation.GetLiveMetrics(request)).versions)


def to_task(name: str) -> evaluation_pb2.Task.ValueType:
    """The contract's task of "binary", "multiclass" or "regression"; InvalidInput otherwise."""
    if name not in TASKS:
        raise InvalidInput(f"no task {name!r}; one of {', '.join(TASKS)}")
    return TASKS[name]
