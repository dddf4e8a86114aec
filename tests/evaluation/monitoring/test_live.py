"""Live metrics of every task, their bounds, and errors of plugins; imports and retention of an idle service."""

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from treadle.core.column import Column
from treadle.core.errors import FailedPrecondition, InvalidInput
from treadle.evaluation.ledger.ledger import Ledger
from treadle.evaluation.ledger.recording import predictions_of
from treadle.evaluation.offline.scores import default_output
from treadle.evaluation.service import EvaluationSettings, open_service
from treadle.observability.telemetry.telemetry import Telemetry
from treadle.plugins.hookspecs import hookimpl
from treadle.plugins.manager import Plugins
from treadle.plugins.metrics import Metric
from treadle.plugins.tensors import Array
from treadle.rpc.app.serving import running
from treadle.rpc.client.channel import Channel
from treadle.rpc.codec.columns import encode
from treadle.v1 import evaluation_pb2 as pb
from treadle.v1 import evaluation_pb2_grpc

from ..conftest import NOWHERE

Make = Callable[..., Any]


class Broken(Metric):
    name = "broken.metric"
    tasks = ("regression",)
    higher_is_better = True

    def score(self, labels: Array, scores: Array) -> float:
        raise KeyError("secret")


@hookimpl
def treadle_metrics(register: Callable[[Metric], None]) -> None:
    register(Broken())


@pytest.fixture
async def small(tmp_path: Path) -> AsyncIterator[Any]:
    """A service with live metrics over at most 20 rows, and a plugin whose metric raises."""
    plugins = Plugins.load(modules={"broken": SimpleNamespace(treadle_metrics=treadle_metrics)})
    opening = partial(open_service, plugins=plugins)
    async with (
        running(opening, EvaluationSettings(live_metrics_rows=20), home=tmp_path / "small", peers=NOWHERE) as address,
        Channel(address, service="evaluation", telemetry=Telemetry.off()) as channel,
    ):
        yield evaluation_pb2_grpc.EvaluationServiceStub(channel)


def answers(batch: Make, ids: list[str], values: Any, *, name: str = "score", **fields: Any) -> pb.PredictionBatch:
    made: pb.PredictionBatch = batch(ids, **fields)
    del made.outputs[:]
    made.outputs.append(encode(Column.of(name, values)))
    return made


async def live(service: Any, task: "pb.Task.ValueType", **fields: Any) -> dict[int, pb.LiveMetrics]:
    found = await service.GetLiveMetrics(pb.GetLiveMetricsRequest(deployment="d", task=task, **fields))
    return {each.model.version: each for each in found.versions}


async def test_metrics_cover_the_newest_rows_and_counts_all_rows(small: Any, batch: Make, labels: Make) -> None:
    ids = [f"{index:02}" for index in range(50)]
    rng = np.random.default_rng(0)
    truth, scores = np.tile([0.0, 1.0], 25), rng.random(50)
    wrong_at_first = np.where(np.arange(50) < 30, 1 - truth, np.clip(truth * 0.9 + scores * 0.1, 0, 1))
    for index, key in enumerate(ids):
        await small.RecordPredictions([answers(batch, [key], [wrong_at_first[index]], at=1000 + index)])
    await small.RecordLabels([labels(ids, truth)])
    found = await live(small, pb.TASK_BINARY_CLASSIFICATION)
    assert (found[1].predictions, found[1].labelled, found[1].scored) == (50, 50, 20)
    assert {each.metric: each.value for each in found[1].metrics}["roc_auc"] == 1.0  # of the newest twenty only


async def test_multiclass_metrics_are_computed_and_a_wrong_task_is_refused(
    evaluation: Any, batch: Make, labels: Make
) -> None:
    scores = np.tile([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.2, 0.2, 0.6]], (10, 1))
    ids = [f"k{index}" for index in range(30)]
    await evaluation.RecordPredictions([answers(batch, ids, scores)])
    await evaluation.RecordLabels([labels(ids, np.tile([0.0, 1.0, 1.0], 10))])
    found = await live(evaluation, pb.TASK_MULTICLASS_CLASSIFICATION)
    assert {each.metric: each.value for each in found[1].metrics}["accuracy"] == pytest.approx(2 / 3)
    with pytest.raises(FailedPrecondition, match=r"this task needs \[-1\]"):
        await live(evaluation, pb.TASK_REGRESSION)


async def test_versions_with_different_classes_have_no_common_metrics(
    evaluation: Any, batch: Make, labels: Make
) -> None:
    for version, classes in ((1, 2), (2, 3)):
        ids = [f"{version}-{index}" for index in range(4)]
        scores = np.full((4, classes), 1 / classes)
        await evaluation.RecordPredictions([answers(batch, ids, scores, version=version)])
        await evaluation.RecordLabels([labels(ids, [0, 1, 0, 1])])
    found = await live(evaluation, pb.TASK_MULTICLASS_CLASSIFICATION)
    assert [len(found[version].metrics) > 0 for version in (1, 2, 0)] == [True, True, False]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({}, "outputs note, score: name the one that holds the score"),
        ({"score_output": "scroe"}, "did you mean 'score'"),
        ({"score_output": "note"}, "STRING, not a number"),
    ],
)
async def test_an_output_that_cannot_be_scored_is_refused(
    evaluation: Any, batch: Make, labels: Make, fields: dict[str, Any], words: str
) -> None:
    made = answers(batch, ["a"], [1.0])
    made.outputs.append(encode(Column.of("note", ["x"])))
    await evaluation.RecordPredictions([made])
    await evaluation.RecordLabels([labels(["a"], [1.0])])
    with pytest.raises(InvalidInput, match=words):
        await live(evaluation, pb.TASK_REGRESSION, **fields)


async def test_a_recorded_timestamp_is_no_score(evaluation: Any, batch: Make, labels: Make) -> None:
    await evaluation.RecordPredictions([answers(batch, ["a"], np.array(["2013-09-01"], "datetime64[us]"))])
    await evaluation.RecordLabels([labels(["a"], [1.0])])
    with pytest.raises(FailedPrecondition, match="not a number; name another score_output"):
        await live(evaluation, pb.TASK_REGRESSION)


async def test_an_output_that_some_predictions_lack_is_refused(evaluation: Any, batch: Make, labels: Make) -> None:
    await evaluation.RecordPredictions([answers(batch, ["a"], [1.0]), answers(batch, ["b"], [1.0], name="other")])
    await evaluation.RecordLabels([labels(["a", "b"], [1.0, 1.0])])
    with pytest.raises(InvalidInput, match='no output "score"'):
        await live(evaluation, pb.TASK_REGRESSION, score_output="score")


async def test_an_error_of_a_metric_names_the_plugin_and_no_value(small: Any, batch: Make, labels: Make) -> None:
    await small.RecordPredictions([answers(batch, ["a", "b"], [1.0, 2.0])])
    await small.RecordLabels([labels(["a", "b"], [1.0, 1.0])])
    with pytest.raises(FailedPrecondition, match=r'"broken.metric" of a plugin raised KeyError; mend') as caught:
        await live(small, pb.TASK_REGRESSION)
    assert "secret" not in caught.value.message


async def test_a_service_with_retention_purges_older_rows(tmp_path: Path, telemetry: Telemetry, batch: Make) -> None:
    ledger = Ledger(tmp_path / "home", clock=lambda: 0.0)
    await ledger.start()
    await ledger.record(predictions_of(batch(["old"]), "batch"))
    await ledger.close()
    settings = EvaluationSettings(retention_days=1)
    async with running(open_service, settings, home=tmp_path / "home", peers=NOWHERE, telemetry=telemetry):
        async with asyncio.timeout(30):
            while ledger.rows("d").table.num_rows:
                await asyncio.sleep(0.01)


@pytest.mark.parametrize("wrong", [{"live_metrics_rows": 0}, {"retention_days": -1}, {"parallel_evaluations": 0}])
def test_settings_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput, match=rf"EvaluationSettings\.{next(iter(wrong))} must be"):
        EvaluationSettings(**wrong)


IDLE = """
import asyncio, sys
from pathlib import Path
from treadle.evaluation.service import EvaluationSettings, open_service
from treadle.rpc.app.serving import running

async def main():
    peers = dict.fromkeys(("registry", "features", "inference"), "127.0.0.1:1")
    async with running(open_service, EvaluationSettings(retention_days=1), home=Path(sys.argv[1]), peers=peers):
        heavy = {"sklearn", "duckdb", "pyarrow", "matplotlib", "scipy", "pandas", "jinja2", "torch"}
        print(sorted(heavy & {name.partition(".")[0] for name in sys.modules}))

asyncio.run(main())
"""


def test_an_idle_process_has_imported_no_heavy_library(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", IDLE, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_score_is_the_only_output_or_the_probability():
    assert default_output(["anything"]) == "anything"
    assert default_output(["label", "probability"]) == "probability"
    assert default_output(["label", "margin"]) == ""
    assert default_output([]) == ""
