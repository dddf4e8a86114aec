"""The Evaluate RPC, with real registry, feature and inference services."""

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.metrics import f1_score, roc_auc_score, root_mean_squared_error

from treadle import oip
from treadle.client import AsyncClient
from treadle.core.errors import InvalidInput, NotFound
from treadle.evaluation.report.report import to_html, to_markdown
from treadle.evaluation.service import EvaluationSettings, open_service
from treadle.features import service as features_service
from treadle.inference import service as inference_service
from treadle.observability.telemetry.telemetry import Telemetry
from treadle.plugins.hookspecs import hookimpl
from treadle.plugins.manager import Plugins
from treadle.plugins.metrics import Metric
from treadle.plugins.packaging import save_model
from treadle.plugins.tensors import Array
from treadle.registry import service as registry_service
from treadle.rpc.app.serving import running
from treadle.rpc.client.channel import Channel
from treadle.v1 import evaluation_pb2 as pb
from treadle.v1 import (
    evaluation_pb2_grpc,
    features_pb2,
    features_pb2_grpc,
    registry_pb2,
    registry_pb2_grpc,
    types_pb2,
)

ROWS = 3000
COLUMNS = ["wind", "hour"]


class WorstMiss(Metric):
    name = "house.worst_miss"
    tasks = ("regression",)
    higher_is_better = False

    def score(self, labels: Array, scores: Array) -> float:
        return float(np.abs(labels - scores).max())


@hookimpl
def treadle_metrics(register: Callable[[Metric], None]) -> None:
    register(WorstMiss())


PLUGINS = Plugins.load(modules={"house": SimpleNamespace(treadle_metrics=treadle_metrics)})


@dataclass
class Mesh:
    """Stubs of four real services, and a client of the registry."""

    client: AsyncClient
    registry: Any
    features: Any
    inference: oip.GRPCInferenceServiceStub
    evaluation: Any
    dataset: Path
    table: pa.Table
    model: LogisticRegression


@pytest.fixture
async def mesh(tmp_path: Path) -> AsyncIterator[Mesh]:
    table, models = data_and_models()
    path = tmp_path / "data.parquet"
    pq.write_table(table, path)
    async with AsyncExitStack() as stack:
        peers: dict[str, str] = {}

        async def start(name: str, open_it: Any, settings: Any) -> Channel:
            home = tmp_path / name
            peers[name] = await stack.enter_async_context(running(open_it, settings, home=home, peers=dict(peers)))
            return await stack.enter_async_context(Channel(peers[name], service=name, telemetry=Telemetry.off()))

        registry = registry_pb2_grpc.RegistryServiceStub(
            await start("registry", registry_service.open_service, registry_service.RegistrySettings())
        )
        features = features_pb2_grpc.FeatureServiceStub(
            await start("features", features_service.open_service, features_service.FeatureSettings())
        )
        inference = oip.GRPCInferenceServiceStub(
            await start("inference", inference_service.open_service, inference_service.InferenceSettings())
        )
        evaluation = evaluation_pb2_grpc.EvaluationServiceStub(
            await start("evaluation", partial(open_service, plugins=PLUGINS), EvaluationSettings())
        )
        await features.ApplyFeatures(definitions(path))
        client = await stack.enter_async_context(AsyncClient(peers["registry"]))
        for index, model in enumerate(models):
            await push(client, model, tmp_path / f"model{index}")
        yield Mesh(client, registry, features, inference, evaluation, path, table, models[0])


def data_and_models() -> tuple[pa.Table, list[LogisticRegression]]:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(ROWS, 2)).astype(np.float32)
    late = (x[:, 0] + 0.5 * x[:, 1] + rng.normal(size=ROWS) > 0.5).astype(np.int64)
    table = pa.table(
        {
            "wind": x[:, 0],
            "hour": x[:, 1],
            "late": pa.array(late.tolist()[:-10] + [None] * 10),
            "origin": np.array(["EWR", "JFK", "LGA"])[rng.integers(3, size=ROWS)],
            "salary": rng.integers(3, size=ROWS),
            "at": pa.array(range(ROWS), pa.timestamp("us")),
        }
    )
    good = LogisticRegression().fit(x, late)
    poor = LogisticRegression().fit(x * np.array([0.0, 1.0], np.float32), late)
    return table, [good, poor]


def definitions(path: Path) -> features_pb2.ApplyFeaturesRequest:
    view = features_pb2.FeatureView(
        name="people",
        entities=[features_pb2.Entity(name="origin", dtype=types_pb2.DATA_TYPE_STRING)],
        source=features_pb2.FeatureSource(path=str(path), timestamp_column="at"),
        fields=[
            features_pb2.FeatureField(name="salary", dtype=types_pb2.DATA_TYPE_INT64, sensitivity="pii"),
        ],
        owner="tests",
    )
    service = features_pb2.FeatureServiceSpec(
        name="fs",
        sets=[features_pb2.FeatureSet(view="people")],
        context=[features_pb2.FeatureField(name=name, dtype=types_pb2.DATA_TYPE_FP32) for name in COLUMNS],
        owner="tests",
    )
    return features_pb2.ApplyFeaturesRequest(views=[view], services=[service])


async def push(client: AsyncClient, model: Any, folder: Path, name: str = "delay") -> None:
    sample = {"features": np.zeros((2, 2), np.float32)}
    save_model(model, folder, sample, columns={"features": COLUMNS}, feature_service="fs")
    await client.push_model(name, folder)


def request(mesh: Mesh, **changes: Any) -> pb.EvaluateRequest:
    wanted = pb.EvaluateRequest(
        ref=types_pb2.ModelRef(model="delay", version=1),
        dataset=pb.Dataset(path=str(mesh.dataset), label_column="late", slice_columns=["origin"], name="test"),
        task=pb.TASK_BINARY_CLASSIFICATION,
        score_output="probability",
        baseline=types_pb2.ModelRef(model="delay", version=2),
        gate=pb.GatePolicy(
            minimum_rows=100,
            thresholds=[
                pb.Threshold(metric="roc_auc", at_least=0.7, slice="origin=*", confident=True),
                pb.Threshold(metric="log_loss", at_most=0.0, relative_to_baseline=True),
            ],
        ),
        seed=3,
    )
    wanted.MergeFrom(pb.EvaluateRequest(**changes))
    return wanted


async def evaluate(mesh: Mesh, wanted: pb.EvaluateRequest) -> tuple[list[pb.Progress], pb.EvaluationReport]:
    events = [event async for event in mesh.evaluation.Evaluate(wanted)]
    return [event.progress for event in events[:-1]], events[-1].report


async def test_a_version_is_evaluated_compared_judged_and_the_report_kept(mesh: Mesh) -> None:
    progress, report = await evaluate(mesh, request(mesh))
    stages = list(dict.fromkeys(step.stage for step in progress))
    assert stages == ["loading", "predicting", "predicting baseline", "scoring", "storing"]
    assert report.rows == ROWS - 10
    assert [part.slice for part in report.slices] == ["", "origin=EWR", "origin=JFK", "origin=LGA"]
    labels = np.array(mesh.table["late"].to_pylist()[:-10])
    x = np.column_stack([mesh.table[name].to_numpy() for name in COLUMNS])[:-10]
    auc = next(each for each in report.slices[0].candidate if each.metric == "roc_auc")
    assert auc.value == pytest.approx(roc_auc_score(labels, mesh.model.predict_proba(x)[:, 1]), abs=1e-9)
    assert report.gate.verdict == pb.VERDICT_PASS, report.gate
    judged = [result.threshold.slice for result in report.gate.results]
    assert judged == ["origin=EWR", "origin=JFK", "origin=LGA", ""]
    (stored,) = (await mesh.registry.ListReports(registry_pb2.ListReportsRequest(ref=request(mesh).ref))).reports
    assert pb.EvaluationReport.FromString(stored.report) == report
    index = await mesh.inference.RepositoryIndex(oip.RepositoryIndexRequest(ready=True))
    assert not index.models  # a version that was loaded for the evaluation is unloaded after it


async def test_a_multiclass_model_is_evaluated(mesh: Mesh, tmp_path: Path) -> None:
    x = np.column_stack([mesh.table[name].to_numpy() for name in COLUMNS])
    kinds = (x[:, 0] > 0.5).astype(np.int64) + (x[:, 1] > 0)
    pq.write_table(mesh.table.append_column("kind", pa.array(kinds)), tmp_path / "kinds.parquet")
    model = LogisticRegression().fit(x, kinds)
    await push(mesh.client, model, tmp_path / "kinds", "kinds")
    threshold = pb.Threshold(metric="accuracy", at_least=0.99, confident=True)
    wanted = pb.EvaluateRequest(
        ref=types_pb2.ModelRef(model="kinds", version=1),
        dataset=pb.Dataset(path=str(tmp_path / "kinds.parquet"), label_column="kind", slice_columns=["origin"]),
        task=pb.TASK_MULTICLASS_CLASSIFICATION,
        score_output="probability",
        gate=pb.GatePolicy(thresholds=[threshold]),
        bootstrap_resamples=50,
    )
    _, report = await evaluate(mesh, wanted)
    found = {each.metric: each for each in report.slices[0].candidate}
    assert list(found) == ["accuracy", "log_loss", "macro_f1", "roc_auc_ovr"]
    assert found["macro_f1"].value == pytest.approx(f1_score(kinds, model.predict(x), average="macro"))
    assert report.gate.verdict == pb.VERDICT_FAIL
    assert not report.HasField("baseline")
    assert "accuracy by slice" in to_html(report)


async def test_a_regression_is_evaluated_with_a_metric_of_a_plugin(mesh: Mesh, tmp_path: Path) -> None:
    x = np.column_stack([mesh.table[name].to_numpy() for name in COLUMNS])
    minutes = 10 * x[:, 0] + np.random.default_rng(1).normal(size=ROWS)
    pq.write_table(mesh.table.append_column("minutes", pa.array(minutes)), tmp_path / "minutes.parquet")
    model = LinearRegression().fit(x, minutes)
    for index, each in enumerate((model, LinearRegression().fit(x, minutes + 5))):
        await push(mesh.client, each, tmp_path / f"minutes{index}", "minutes")
    bounds = pb.Threshold(metric="house.worst_miss", at_most=6, slice="origin=JFK")
    wanted = pb.EvaluateRequest(
        ref=types_pb2.ModelRef(model="minutes", version=1),
        baseline=types_pb2.ModelRef(model="minutes", version=2),
        dataset=pb.Dataset(path=str(tmp_path / "minutes.parquet"), label_column="minutes", slice_columns=["origin"]),
        task=pb.TASK_REGRESSION,
        gate=pb.GatePolicy(
            thresholds=[bounds, pb.Threshold(metric="rmse", at_most=0, relative_to_baseline=True, confident=True)]
        ),
        bootstrap_resamples=50,
    )
    _, report = await evaluate(mesh, wanted)
    found = {each.metric: each for each in report.slices[0].candidate}
    assert list(found) == ["rmse", "mae", "r2", "bias", "median_absolute_error", "house.worst_miss"]
    assert found["rmse"].value == pytest.approx(root_mean_squared_error(minutes, model.predict(x)), rel=1e-5)
    assert {each.metric: each for each in report.slices[0].baseline}["bias"].value == pytest.approx(5, abs=0.2)
    assert report.gate.verdict == pb.VERDICT_PASS, report.gate
    assert [curve.name for curve in report.curves] == ["residuals:candidate", "residuals:baseline"]


async def test_the_same_seed_makes_the_same_report(mesh: Mesh) -> None:
    one, two = [(await evaluate(mesh, request(mesh)))[1] for _ in range(2)]
    for report in (one, two):
        report.created_micros = 0
        report.trace_id = ""
    assert one == two


async def test_a_worse_version_fails_the_gate_with_reasons(mesh: Mesh) -> None:
    wanted = request(mesh)
    wanted.ref.version, wanted.baseline.version = 2, 1
    _, report = await evaluate(mesh, wanted)
    assert report.gate.verdict == pb.VERDICT_FAIL
    assert "log_loss difference to the baseline" in report.gate.results[-1].reason
    page = to_html(report)
    assert page.count("<img") == 3
    assert "http" not in page.replace("http://www.w3.org", "")
    assert "| FAIL |" in to_markdown(report)


def _no_path(wanted: pb.EvaluateRequest) -> None:
    wanted.dataset.path = "/nowhere/*.parquet"


def _sensitive(wanted: pb.EvaluateRequest) -> None:
    wanted.dataset.slice_columns.append("salary")


def _metric(wanted: pb.EvaluateRequest) -> None:
    wanted.gate.thresholds[0].metric = "roc_acu"


def _slice(wanted: pb.EvaluateRequest) -> None:
    wanted.gate.thresholds[0].slice = "origin=JKF"


def _label(wanted: pb.EvaluateRequest) -> None:
    wanted.dataset.label_column = "laet"


def _task(wanted: pb.EvaluateRequest) -> None:
    wanted.task = pb.TASK_UNSPECIFIED


def _version(wanted: pb.EvaluateRequest) -> None:
    wanted.ref.version = 9


def _output(wanted: pb.EvaluateRequest) -> None:
    wanted.score_output = "probabilty"


def _no_baseline(wanted: pb.EvaluateRequest) -> None:
    wanted.ClearField("baseline")


REFUSED: list[tuple[Callable[[pb.EvaluateRequest], None], type[Exception], str]] = [
    (_no_path, NotFound, "no Parquet file"),
    (_sensitive, InvalidInput, "tagged sensitive.*salary"),
    (_metric, InvalidInput, "did you mean 'roc_auc'"),
    (_slice, InvalidInput, "did you mean 'origin=JFK'"),
    (_label, InvalidInput, "did you mean 'late'"),
    (_task, InvalidInput, "task must be"),
    (_version, NotFound, "9"),
    (_output, InvalidInput, "did you mean 'probability'"),
    (_no_baseline, InvalidInput, "needs a baseline"),
]


async def test_what_cannot_be_evaluated_says_why(mesh: Mesh) -> None:
    for change, error, words in REFUSED:
        wanted = request(mesh)
        change(wanted)
        with pytest.raises(error, match=words):
            await evaluate(mesh, wanted)
    assert not (await mesh.registry.ListReports(registry_pb2.ListReportsRequest(ref=request(mesh).ref))).reports


async def test_a_null_where_the_model_forbids_it_names_the_column(mesh: Mesh, tmp_path: Path) -> None:
    holed = mesh.table.set_column(0, "wind", pa.array([None, *mesh.table["wind"].to_pylist()[1:]], pa.float32()))
    pq.write_table(holed, tmp_path / "holed.parquet")
    wanted = request(mesh)
    wanted.dataset.path = str(tmp_path / "holed.parquet")
    with pytest.raises(InvalidInput, match=r"dataset\[wind\] has no usable value in row 0"):
        await evaluate(mesh, wanted)
