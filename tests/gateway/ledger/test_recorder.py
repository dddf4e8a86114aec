"""From the spool to the ledger, through the ledger's absences."""

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest

from treadle.gateway.ledger.spool import read
from treadle.observability.telemetry.telemetry import Telemetry
from treadle.v1 import evaluation_pb2, evaluation_pb2_grpc

from ..conftest import flights

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def test_nothing_is_lost_while_evaluation_is_down(mesh: Any) -> None:
    await mesh.stop("evaluation")
    ids: list[str] = []
    async with mesh.gateway() as gate:
        for _ in range(5):
            ids += (await gate.rpc.Predict(flights("N1", "N2"))).prediction_ids
    async with mesh.gateway() as gate:  # another process, the same disk
        ids += (await gate.rpc.Predict(flights("N1"))).prediction_ids
        await mesh.start("evaluation")
        records = await mesh.ledger.until(6)
    assert sorted(id_ for record in records for id_ in record.prediction_ids) == sorted(ids)


async def test_the_evaluation_service_counts_every_row(gate: Any) -> None:
    evaluation = gate.stub(evaluation_pb2_grpc.EvaluationServiceStub)
    since = evaluation_pb2.GetLiveMetricsRequest(
        deployment="delays", from_micros=int(time.time() * 1e6), task=evaluation_pb2.TASK_REGRESSION
    )

    async def recorded() -> int:
        found = (await evaluation.GetLiveMetrics(since)).versions
        return sum(each.predictions for each in found if each.model.model)

    await gate.rpc.Predict(flights("N1", "N2"))
    async with asyncio.timeout(20):
        while await recorded() < 2:
            await asyncio.sleep(0.02)
    assert await recorded() == 2


async def test_a_refused_record_is_set_aside_and_holds_up_no_other(mesh: Any) -> None:
    mesh.ledger.refuse = lambda batch: len(batch.prediction_ids) == 2
    async with mesh.gateway(spool_segment_seconds=0.2) as gate:
        for tails in (("N1",), ("N1", "N2"), ("N3",)):
            await gate.rpc.Predict(flights(*tails))
        records = await mesh.ledger.until(2)
    assert [len(record.prediction_ids) for record in records] == [1, 1]
    assert (Path(mesh.home) / "gateway" / "refused").stat().st_size > 0


async def test_many_requests_in_one_call_are_linked(mesh: Any) -> None:
    await mesh.stop("evaluation")
    telemetry = Telemetry.recording("gateway")
    async with mesh.gateway(telemetry=telemetry, spool_segment_seconds=3_600) as gate:
        for _ in range(3):
            await gate.rpc.Predict(flights("N1"))
    await mesh.start("evaluation")
    requests = [s for s in telemetry.spans if s.name.endswith("/Predict")]
    async with mesh.gateway(telemetry=telemetry):
        await mesh.ledger.until(3)
    (sent,) = [span for span in telemetry.spans if span.name == "treadle.record_predictions"]
    assert {link.context.span_id for link in sent.links} == {span.context.span_id for span in requests}


async def test_a_full_spool_serves_on_and_counts(mesh: Any) -> None:
    await mesh.stop("evaluation")
    telemetry = Telemetry.off()
    async with mesh.gateway(telemetry=telemetry, spool_max_bytes=10) as gate:
        assert (await gate.rpc.Predict(flights("N1"))).served_by == "traffic"
    count = telemetry.meters.registry.get_sample_value("treadle_gateway_records_dropped_total", {"reason": "no room"})
    assert count == 1


async def test_entities_are_not_recorded_while_it_is_unknown_what_is_sensitive(mesh: Any) -> None:
    (mesh.home / "gateway" / "policies.json").unlink()
    await mesh.stop("features")
    await mesh.stop("evaluation")
    async with mesh.gateway(spool_segment_seconds=3_600) as gate:
        assert (await gate.rpc.Predict(flights("N1"))).served_by == "fallback:rule"
    (segment,) = (mesh.home / "gateway" / "spool").iterdir()
    (record,) = map(evaluation_pb2.PredictionBatch.FromString, read(segment).records)
    assert not record.entities
    assert not record.features
