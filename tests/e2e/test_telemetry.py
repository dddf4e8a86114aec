"""Telemetry is a contract: which service calls which, in one trace; and what must never be in any of it."""

import asyncio
from pathlib import Path

import httpx
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from treadle.core.errors import NotFound
from treadle.observability.edges import (
    EVALUATION_EDGES,
    REQUEST_EDGES,
    SERVICE_EDGES,
    missing_edges,
    missing_signals,
    undeclared_edges,
)
from treadle.observability.telemetry.telemetry import Telemetry
from treadle.observability.tracestore.proto_codec import trace_from_proto
from treadle.rpc.client.channel import Channel
from treadle.v1 import traces_pb2, traces_pb2_grpc

from .conftest import SECRET_STREET

pytestmark = pytest.mark.slow

FIVE = missing_signals(())


async def trace_until(shop, trace_id, complete):
    """The trace, once it is complete: spans are exported about once a second. Its edges are all declared."""
    found = None
    async with Channel(shop.mesh.address("traces"), service="traces", telemetry=Telemetry.off()) as channel:
        stub = traces_pb2_grpc.TraceQueryServiceStub(channel)
        for _ in range(120):
            try:
                found = trace_from_proto(await stub.GetTrace(traces_pb2.GetTraceRequest(trace_id=trace_id)))
                if complete(found):
                    assert undeclared_edges(found.spans, SERVICE_EDGES) == set()
                    return found
            except NotFound:
                pass
            await asyncio.sleep(0.25)
    raise AssertionError(f"incomplete: {[(span.service, span.name) for span in found.spans] if found else found}")


async def trace_with(shop, trace_id, wanted):
    """The trace, once it holds the wanted edges."""
    return await trace_until(shop, trace_id, lambda trace: not missing_edges(trace.spans, wanted))


async def test_a_request_is_one_trace_through_gateway_features_and_inference(shop):
    async with shop.client() as client:
        answer = await client.predict("purchase", shop.entities(1), shop.context(30))
    await trace_with(shop, answer.trace_id, REQUEST_EDGES)
    # The root may be recorded by another than what is below it, and come later.
    trace = await trace_until(shop, answer.trace_id, lambda trace: not all(span.parent_id for span in trace.spans))
    assert {span.trace_id for span in trace.spans} == {answer.trace_id}
    (root,) = [span for span in trace.spans if not span.parent_id]
    assert (root.service, root.name) == ("gateway", "treadle.v1.PredictionService/Predict")


def carried(trace):
    """Whether what asked the model for a request is shown with its trace: a call of its own, or one for several."""
    names = {span.name for span in (*trace.spans, *trace.linked)}
    return "treadle.coalesced" in names or "inference.GRPCInferenceService/ModelInfer" in names


async def test_requests_that_went_together_are_shown_with_what_carried_them(shop):
    async with shop.client() as client:
        answers = await asyncio.gather(
            *(client.predict("purchase", shop.entities(n), shop.context(30)) for n in range(40))
        )
    together = []
    for answer in answers:
        trace = await trace_until(shop, answer.trace_id, carried)
        together += [span for span in (*trace.spans, *trace.linked) if span.name == "treadle.coalesced"]
    assert any(len(span.links) > 0 for span in together), "40 at once go in fewer calls"


async def test_an_evaluation_is_one_trace_through_all_five_services(shop, tmp_path):
    path = dataset(tmp_path)
    async with shop.client() as client:
        report = await client.evaluate(
            "purchase/2", str(path), label="bought", score_output="probability", baseline="purchase/1"
        )
    trace = await trace_with(shop, report.trace_id, EVALUATION_EDGES)
    assert {span.service for span in trace.spans} >= FIVE


def dataset(folder: Path) -> Path:
    chance = np.random.default_rng(5)
    basket = chance.uniform(1, 300, 300)
    amount = chance.uniform(5, 200, 300)
    table = pa.table({
        "spending__visits": chance.integers(1, 30, 300).astype(float),
        "spending__mean_amount": amount,
        "basket": basket,
        "ratio": basket / amount,
        "bought": (basket / amount < 1.2).astype(float),
    })  # fmt: skip
    pq.write_table(table, folder / "baskets.parquet")
    return folder / "baskets.parquet"


async def test_the_callers_trace_goes_on_over_grpc_and_rest(shop):
    trace_id = "0af7651916cd43dd8448eb211c80319c"
    parent = {"traceparent": f"00-{trace_id}-b7ad6b7169203331-01"}
    body = {"entities": {"customer": [1]}, "context": {"basket": [30.0]}}
    async with httpx.AsyncClient(base_url=shop.mesh.rest) as http:
        answer = (await http.post("/v1/deployments/purchase:predict", json=body, headers=parent)).json()
    assert answer["trace_id"] == trace_id
    await trace_with(shop, trace_id, REQUEST_EDGES)


async def test_each_process_has_metrics_by_model_and_method(shop):
    async with shop.client() as client:
        await client.predict("purchase", shop.entities(1), shop.context(30))
    async with httpx.AsyncClient() as http:
        for service in FIVE:
            url, text = f"http://{shop.mesh.mesh.plan.metrics_address(service)}/metrics", ""
            while "rpc_server_call_duration_seconds_bucket" not in text:  # the ledger is called in a moment
                await asyncio.sleep(0.05)
                text = (await http.get(url)).text
            if service == "inference":
                assert 'model="purchase",version="1"' in text


async def test_sensitive_values_are_in_no_log_and_no_trace(shop):
    async with shop.client() as client:
        answer = await client.predict("purchase", shop.entities(3), shop.context(30), return_features=True)
        with pytest.raises(Exception, match=r"(?i)street"):
            await client.predict("purchase", {"customer": [3], "street": [f"{SECRET_STREET} 3"]}, shop.context(30))
    await trace_with(shop, answer.trace_id, REQUEST_EDGES)
    searched = 0
    for folder in ("logs", "traces", "gateway", "evaluation", "registry", "inference"):
        for path in (shop.mesh.home / folder).rglob("*"):
            if path.is_file():
                searched += 1
                assert SECRET_STREET.encode() not in path.read_bytes(), f"{path} holds a sensitive value"
    assert searched > 10
