"""Evaluation of a version: reads the dataset, predicts, scores, compares, judges, and stores the report."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from treadle.core.column import Column
from treadle.core.errors import InvalidInput
from treadle.evaluation import codec
from treadle.evaluation.offline import dataset
from treadle.evaluation.offline.gate import GatePolicy, check_policy, check_slices, judge
from treadle.evaluation.offline.metrics import EvaluationMetric, Floats, Task, metrics_for
from treadle.evaluation.offline.predictor import Predictor
from treadle.evaluation.offline.scores import as_labels, as_scores, check_classes, score_output
from treadle.evaluation.offline.slices import Slice, score_slices, slices_of
from treadle.evaluation.report.curves import curves_of
from treadle.plugins.tensors import Signature
from treadle.rpc.context import current
from treadle.v1 import evaluation_pb2 as pb
from treadle.v1 import features_pb2, features_pb2_grpc, registry_pb2, registry_pb2_grpc, types_pb2

RESAMPLES = 200
MAXIMUM_RESAMPLES = 10_000


@dataclass(frozen=True)
class EvaluationUpstreams:
    """Clients of the services that an evaluation calls."""

    registry: "registry_pb2_grpc.RegistryServiceAsyncStub"
    features: "features_pb2_grpc.FeatureServiceAsyncStub"
    predictor: Predictor


@dataclass(frozen=True)
class _Version:
    ref: types_pb2.ModelRef
    signature: Signature
    feature_service: str
    output: str

    @property
    def name(self) -> str:
        return f"{self.ref.model}/{self.ref.version}"


@dataclass(frozen=True)
class _Data:
    digest: str
    columns: Mapping[str, Column]
    positions: NDArray[np.int64]
    """Where in the dataset each row stands: rows without a label are left out."""
    labels: Floats
    slices: list[Slice]


@dataclass
class Progress:
    """The progress of an evaluation: rows done in a stage."""

    stage: str
    done: int
    total: int


class Runner:
    """Runs evaluations; one runner for the service."""

    def __init__(
        self,
        peers: EvaluationUpstreams,
        plugin_metrics: Callable[[Task], Sequence[EvaluationMetric]],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._peers = peers
        self._plugin_metrics = plugin_metrics
        self._clock = clock

    async def run(self, request: pb.EvaluateRequest) -> AsyncIterator[Progress | pb.EvaluationReport]:
        """Yields progress, then the report, after it is stored in the registry."""
        task = codec.task_from_proto(request.task)
        resamples = _resamples(request)
        metrics = await asyncio.to_thread(lambda: metrics_for(task, self._plugin_metrics(task)))
        policy = codec.policy_from_proto(request.gate)
        check_policy(policy, metrics, has_baseline=bool(request.baseline.model))
        yield Progress("loading", 0, 0)
        versions = [await self._version(request.ref, request.score_output, "ref")]
        if request.baseline.model:
            versions.append(await self._version(request.baseline, request.score_output, "baseline"))
        elif request.baseline.version:
            raise InvalidInput("baseline has a version but no model")
        await self._refuse_sensitive(request.dataset, versions)
        data = await asyncio.to_thread(_load, request.dataset, task, versions)
        check_slices(policy, [part.name for part in data.slices])
        rows = len(data.labels)
        yield Progress("loading", rows, rows)
        scores: list[Floats] = []
        for stage, version in zip(("predicting", "predicting baseline"), versions, strict=False):
            async for step in self._predict(stage, version, data, task):
                if isinstance(step, Progress):
                    yield step
                else:
                    scores.append(step)
        yield Progress("scoring", 0, rows)
        report = await asyncio.to_thread(_judge, request, policy, task, metrics, data, scores, resamples)
        report.created_micros = int(self._clock() * 1e6)
        report.trace_id = current().trace_id
        yield Progress("storing", rows, rows)
        await self._peers.registry.AddReport(
            registry_pb2.AddReportRequest(ref=request.ref, report=report.SerializeToString())
        )
        yield report

    async def _version(self, ref: types_pb2.ModelRef, wanted: str, field: str) -> _Version:
        if not ref.model or ref.version < 1:
            raise InvalidInput(f"{field} must name a model and a version from 1")
        found = await self._peers.registry.GetModelVersion(
            registry_pb2.GetModelVersionRequest(model=ref.model, version=ref.version)
        )
        signature = Signature.from_proto(found.manifest.signature)
        output = score_output([spec.name for spec in signature.outputs], wanted, f"{ref.model}/{ref.version}")
        return _Version(ref, signature, found.manifest.feature_service, output)

    async def _refuse_sensitive(self, source: pb.Dataset, versions: Sequence[_Version]) -> None:
        """Slicing writes values into the report, so columns tagged sensitive are refused."""
        services = sorted({version.feature_service for version in versions if version.feature_service})
        if not services:
            return
        found = await self._peers.features.ListFeatureServices(features_pb2.ListFeatureServicesRequest(names=services))
        tagged = [name for name in source.slice_columns if name in _sensitive(found)]
        if tagged:
            raise InvalidInput(
                f"columns tagged sensitive cannot be sliced by (values go into the report): {', '.join(tagged)}"
            )

    async def _predict(
        self, stage: str, version: _Version, data: _Data, task: Task
    ) -> AsyncIterator["Progress | Floats"]:
        """Progress while rows are predicted, then the scores."""
        rows, done, moved = len(data.labels), 0, asyncio.Event()

        def on_rows(more: int) -> None:
            nonlocal done
            done += more
            moved.set()

        yield Progress(stage, 0, rows)
        inputs = await asyncio.to_thread(dataset.model_inputs, version.signature, data.columns, data.positions)
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self._peers.predictor.loaded(version.ref))
            work = asyncio.create_task(self._peers.predictor.scores(version.ref, inputs, version.output, on_rows))
            stack.push_async_callback(_stopped, work)
            work.add_done_callback(lambda _: moved.set())
            while not work.done():
                await moved.wait()
                moved.clear()
                yield Progress(stage, done, rows)
            raw = work.result()
        scores = as_scores(task, raw, source=version.name)
        yield scores


async def _stopped(work: "asyncio.Task[object]") -> None:
    work.cancel()
    await asyncio.wait([work])


def _sensitive(found: features_pb2.ListFeatureServicesResponse) -> set[str]:
    """Names of sensitive columns: "view__field", and bare fields, contexts and outputs of transforms."""
    names = set()
    for view in found.views:
        for field in view.fields:
            if field.sensitivity:
                names |= {f"{view.name}__{field.name}", field.name}
    for service in found.services:
        outputs = [field for transform in service.transforms for field in transform.outputs]
        names |= {field.name for field in [*service.context, *outputs] if field.sensitivity}
    return names


def _resamples(request: pb.EvaluateRequest) -> int:
    if not 0 <= request.bootstrap_resamples <= MAXIMUM_RESAMPLES:
        raise InvalidInput(f"bootstrap_resamples must be 0 (for {RESAMPLES}) to {MAXIMUM_RESAMPLES}")
    return request.bootstrap_resamples or RESAMPLES


def _load(source: pb.Dataset, task: Task, versions: Sequence[_Version]) -> _Data:
    if not source.label_column:
        raise InvalidInput("dataset.label_column must be set")
    files = dataset.files_of(source.path)
    names = [source.label_column, *source.slice_columns]
    names += [name for version in versions for name in version.signature.columns()]
    columns, positions = dataset.with_labels(dataset.read_columns(files, names), source.label_column)
    labels = as_labels(task, columns[source.label_column].values, column=source.label_column)
    slices = slices_of(len(labels), {name: columns[name] for name in source.slice_columns})
    return _Data(dataset.digest_of(files), columns, positions, labels, slices)


def _judge(
    request: pb.EvaluateRequest,
    policy: GatePolicy,
    task: Task,
    metrics: Mapping[str, EvaluationMetric],
    data: _Data,
    scores: Sequence[Floats],
    resamples: int,
) -> pb.EvaluationReport:
    for each in scores:
        check_classes(data.labels, each, column=request.dataset.label_column)
    candidate, baseline = scores[0], scores[1] if len(scores) > 1 else None
    if baseline is not None and np.shape(baseline) != np.shape(candidate):
        raise InvalidInput("candidate and baseline do not have the same classes; they cannot be compared")
    scored = score_slices(
        data.slices, task, metrics, data.labels, candidate, baseline, resamples=resamples, seed=request.seed
    )
    verdict, judgements = judge(policy, scored)
    roles = ("candidate", "baseline")
    curves = [
        curve for name, each in zip(roles, scores, strict=False) for curve in curves_of(task, data.labels, each, name)
    ]
    report = pb.EvaluationReport(
        ref=request.ref,
        dataset=request.dataset,
        dataset_digest=data.digest,
        task=request.task,
        rows=len(data.labels),
        slices=map(codec.slice_metrics_to_proto, scored),
        gate=codec.gate_result_to_proto(verdict, judgements, request.gate),
        curves=curves,
        seed=request.seed,
        bootstrap_resamples=resamples,
    )
    if baseline is not None:
        report.baseline.CopyFrom(request.baseline)
    return report
