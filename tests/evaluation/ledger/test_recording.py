"""Recording over gRPC is durable, idempotent and exact, and an invalid batch does not affect the others."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from treadle.core.column import Column
from treadle.core.errors import InvalidInput
from treadle.evaluation.ledger.ledger import Ledger
from treadle.observability.telemetry.telemetry import Telemetry
from treadle.rpc.codec.columns import encode
from treadle.v1 import evaluation_pb2 as pb
from treadle.v1 import types_pb2

Make = Callable[..., Any]


async def test_recorded_predictions_are_read_back_exactly(evaluation: Any, batch: Make, tmp_path: Path) -> None:
    answer = await evaluation.RecordPredictions([batch(["a", "b", "c"], [0.1, 1 / 3, 1e-300])])
    assert (answer.rows_recorded, answer.rows_duplicate) == (3, 0)
    ledger = Ledger(tmp_path / "evaluation")
    rows = ledger.rows("d")
    assert rows.table["prediction_id"].to_pylist() == ["a", "b", "c"]
    assert rows.outputs()["probability"].values[:, 1].tolist() == [0.1, 1 / 3, 1e-300]
    assert rows.entities()["origin"].values.tolist() == ["JFK"] * 3
    wind = rows.features()["wind"]
    assert wind.nulls is not None
    assert wind.nulls.tolist() == [True, False, False]
    assert wind.values[1:].tolist() == [1 / 3, 2 / 3]
    assert rows.statuses("wind")[:2] == [("NULL", 1.5), ("PRESENT", 1.5)]
    assert rows.statuses("sun") == [None] * 3
    found = ledger.features("d", ["c", "a"])["wind"]
    assert found[0] == 2 / 3
    assert np.isnan(found[1])


async def test_nested_batches_of_a_message_are_recorded_like_any_other(
    evaluation: Any, batch: Make, tmp_path: Path
) -> None:
    many = batch(["a"])
    many.others.extend([batch(["b", "c"]), batch(["d"])])
    many.others[1].others.append(batch(["a"]))
    answer = await evaluation.RecordPredictions([many, batch(["e"])])
    assert (answer.rows_recorded, answer.rows_duplicate) == (5, 1)
    rows = Ledger(tmp_path / "evaluation").rows("d")
    assert sorted(rows.table["prediction_id"].to_pylist()) == list("abcde")


async def test_each_request_of_a_batch_keeps_its_trace_id_and_latency(
    evaluation: Any, batch: Make, tmp_path: Path
) -> None:
    several = batch(["a", "b", "c"], trace_ids=["t", "", "v"], latencies_seconds=[0.1, 0.2, 0.3])
    one, traced = batch(["d"], trace_id="w"), batch(["e", "f"], trace_id="x")
    await evaluation.RecordPredictions([several, one, batch(["b"]), traced])
    table = Ledger(tmp_path / "evaluation").rows("d").table
    wanted = {"a": ("t", 0.1), "b": ("", 0.2), "c": ("v", 0.3), "d": ("w", 0.01), "e": ("x", 0.01), "f": ("x", 0.01)}
    found = zip(*(table[name].to_pylist() for name in ("prediction_id", "trace_id", "latency_seconds")), strict=True)
    assert {name: (trace, seconds) for name, trace, seconds in found} == wanted


async def test_a_prediction_sent_twice_is_stored_once(evaluation: Any, batch: Make, tmp_path: Path) -> None:
    await evaluation.RecordPredictions([batch(["a", "b"])])
    answer = await evaluation.RecordPredictions([batch(["b", "c"]), batch(["c"])])
    assert (answer.rows_recorded, answer.rows_duplicate) == (1, 2)
    assert Ledger(tmp_path / "evaluation").rows("d").table.num_rows == 3


async def test_labels_may_precede_predictions_and_the_latest_label_is_valid(
    evaluation: Any, batch: Make, labels: Make, tmp_path: Path
) -> None:
    await evaluation.RecordLabels([labels(["a"], [1.0], at=20)])
    await evaluation.RecordPredictions([batch(["a", "b"])])
    await evaluation.RecordLabels([labels(["b"], [1.0], at=10), labels(["b"], [0.0], at=30)])
    late = await evaluation.RecordLabels([labels(["a"], [0.0], at=15), labels(["a"], [1.0], at=20)])
    assert (late.rows_recorded, late.rows_duplicate) == (1, 1)
    table = Ledger(tmp_path / "evaluation").rows("d").table
    assert dict(zip(table["prediction_id"].to_pylist(), table["label"].to_pylist(), strict=True)) == {"a": 1, "b": 0}


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"prediction_ids": ["extra"]}, "entities"),
        ({"entities": [types_pb2.Column(name="dest")]}, r"entities\[dest\] has no values"),
        ({"outputs": [encode(Column.of("probability", [0.5]))]}, r"outputs\[probability\] is there twice"),
        ({"latency_seconds": float("nan")}, "latency_seconds"),
        ({"prediction_ids": [""]}, "prediction_ids"),
        ({"at_micros": -1}, "at_micros"),
        ({"trace_ids": ["t", "u"]}, "trace_ids has 2 elements, 1 or none"),
        ({"latencies_seconds": [-1.0]}, "latencies_seconds"),
    ],
)
async def test_an_invalid_batch_is_refused_and_earlier_batches_are_stored(
    evaluation: Any, batch: Make, tmp_path: Path, change: dict[str, Any], where: str
) -> None:
    with pytest.raises(InvalidInput, match=rf"batches\[1\].*{where}.*1 batches before it are stored"):
        await evaluation.RecordPredictions([batch(["a"]), batch(["x"], **change), batch(["z"])])
    await evaluation.RecordPredictions([batch(["b"])])
    assert Ledger(tmp_path / "evaluation").rows("d").table["prediction_id"].to_pylist() == ["a", "b"]


async def test_labels_must_be_finite_numbers_one_for_each_prediction(evaluation: Any, labels: Make) -> None:
    short = labels(["a", "b"], [1.0, 0.0])
    short.prediction_ids.append("c")
    with pytest.raises(InvalidInput, match="at_micros has 2 elements"):
        await evaluation.RecordLabels([short])
    with pytest.raises(InvalidInput, match="labels must be finite"):
        await evaluation.RecordLabels([labels(["a"], [float("nan")])])


async def test_the_span_of_a_write_links_the_requests(evaluation: Any, batch: Make, telemetry: Telemetry) -> None:
    parent = f"00-{'ab' * 16}-{'cd' * 8}-01"
    await evaluation.RecordPredictions([batch(["a"], traceparent=parent)])
    span = next(span for span in telemetry.spans if span.name == "ledger record")
    assert [link.context.trace_id for link in span.links] == [int("ab" * 16, 16)]


async def test_live_metrics_are_computed_on_labelled_predictions(evaluation: Any, batch: Make, labels: Make) -> None:
    rng = np.random.default_rng(0)
    truth = (rng.random(60) < 0.5).astype(float)
    scores = np.clip(truth * 0.3 + rng.random(60) * 0.7, 0, 1)
    ids = [f"p{index:02}" for index in range(60)]
    await evaluation.RecordPredictions(
        [
            batch(ids[:40], scores[:40]),
            batch(ids[40:], scores[40:], version=2),
            batch(["unlabelled"], [0.9]),
            batch(["shadow"], [0.9], shadow=True),
            batch(["fell"], [0.9], version=9, served_by="-", degraded_reason="features: UNAVAILABLE"),
        ]
    )
    fallback = batch(["fallback"], [0.0])
    fallback.served_by, fallback.degraded_reason = "fallback:rule", "inference: UNAVAILABLE"
    await evaluation.RecordPredictions([fallback])
    await evaluation.RecordLabels([labels([*ids, "shadow", "fallback"], [*truth, 0, 1])])
    ask = pb.GetLiveMetricsRequest(deployment="d", task=pb.TASK_BINARY_CLASSIFICATION)
    found = {(each.model.model, each.model.version): each for each in (await evaluation.GetLiveMetrics(ask)).versions}
    one, both = found["m", 1], found["", 0]
    assert (one.predictions, one.labelled, one.degraded, one.scored) == (42, 40, 1, 40)
    assert (both.predictions, both.labelled, both.degraded, both.scored) == (63, 60, 2, 60)
    value = {each.metric: each for each in one.metrics}["roc_auc"]
    assert value.value == roc_auc_score(truth[:40], scores[:40])
    assert value.low < value.value < value.high
    ask.include_fallbacks = True
    assert (await evaluation.GetLiveMetrics(ask)).versions[-1].labelled == 61
    ask.model.model, ask.model.version = "m", 2
    assert [each.labelled for each in (await evaluation.GetLiveMetrics(ask)).versions] == [20, 20]


async def test_an_empty_ledger_has_no_metrics(evaluation: Any) -> None:
    ask = pb.GetLiveMetricsRequest(deployment="nothing", task=pb.TASK_REGRESSION)
    (total,) = (await evaluation.GetLiveMetrics(ask)).versions
    assert (total.predictions, total.labelled, len(total.metrics)) == (0, 0, 0)
    (total,) = (await evaluation.GetLiveMetrics(pb.GetLiveMetricsRequest(deployment="d"))).versions  # binary
    assert total.predictions == 0
    with pytest.raises(InvalidInput, match="task must be"):
        await evaluation.GetLiveMetrics(pb.GetLiveMetricsRequest(deployment="d", task=99))  # type: ignore[arg-type]
