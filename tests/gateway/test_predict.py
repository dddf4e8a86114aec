"""One request through the real mesh: who answers, with what, and what the ledger hears of it."""

from typing import Any

import grpc
import pytest

from treadle.core.errors import DeadlineExceeded, FailedPrecondition, InvalidInput, NotFound, TreadleError
from treadle.observability.telemetry.telemetry import Telemetry
from treadle.rpc.codec.columns import decode
from treadle.v1 import prediction_pb2, registry_pb2, types_pb2

from ..conftest import columns
from .conftest import delays, flights, ref, share, tensors, until_served_by

pytestmark = pytest.mark.asyncio(loop_scope="session")


def scores(response: prediction_pb2.PredictResponse) -> list[float]:
    return decode(response.outputs[0]).values.tolist()  # type: ignore[no-any-return]


async def test_a_prediction_by_entity_key(gate: Any) -> None:
    response = await gate.rpc.Predict(flights("N1", "N2", "N9", distance=3.0, return_features=True))
    assert scores(response) == [13.0, 23.0, 1003.0]
    assert (response.model.model, response.model.version, response.served_by) == ("weigh", 1, "traffic")
    assert response.degraded_reason == "features: stale: aircraft__delay"
    assert len(set(response.prediction_ids)) == 3
    assert list(response.prediction_ids) == sorted(response.prediction_ids)
    delay = next(f for f in response.features if f.column.name == "aircraft__delay")
    assert list(delay.statuses) == [
        types_pb2.FEATURE_STATUS_PRESENT, types_pb2.FEATURE_STATUS_STALE, types_pb2.FEATURE_STATUS_MISSING
    ]  # fmt: skip
    assert decode(delay.column).values[0] == 10.0


async def test_an_answer_sums_up_the_features_behind_it(gate: Any) -> None:
    response = await gate.rpc.Predict(flights("N1", "N2", "N3", "N9"))
    assert list(response.features) == []
    provenance = response.provenance
    assert 7_200 <= provenance.oldest_age_seconds < 7_200 + 3_600
    assert list(provenance.stale) == ["aircraft__delay", "aircraft__income"]
    assert list(provenance.missing) == ["aircraft__delay", "aircraft__income"]
    assert list(provenance.null) == ["aircraft__delay"]


async def test_an_answer_by_tensor_has_no_provenance(gate: Any) -> None:
    assert not (await gate.rpc.Predict(tensors(x=[[1.0, 2.0]]))).HasField("provenance")


async def test_the_record_has_everything_but_sensitive_values(mesh: Any) -> None:
    async with mesh.gateway() as gate:
        response = await gate.rpc.Predict(flights("N1"))
        (record,) = await mesh.ledger.until(1)
    assert list(record.prediction_ids) == list(response.prediction_ids)
    assert [column.name for column in record.entities] == ["tail"]
    assert [f.column.name for f in record.features] == ["aircraft__delay", "distance"]
    assert b"income" not in record.SerializeToString()
    assert record.served_by == "traffic"
    assert record.latency_seconds > 0


async def test_features_down_the_rule_answers(mesh: Any) -> None:
    async with mesh.gateway() as gate:
        await mesh.stop("features")
        response = await gate.rpc.Predict(flights("N1", distance=3.0))
        assert scores(response) == [6.0]
        assert (response.served_by, response.model.model) == ("fallback:rule", "rule")
        assert response.degraded_reason.startswith("features: UNAVAILABLE: ")
        await mesh.start("features")
        response = await until_served_by(gate, flights("N1"), "traffic")
        assert response.degraded_reason == ""


async def test_inference_down_the_constant_answers(mesh: Any) -> None:
    async with mesh.gateway() as gate:
        await mesh.stop("inference")
        response = await gate.rpc.Predict(flights("N1", "N2"))
        assert scores(response) == [0.5, 0.5]
        assert (response.served_by, response.model.version) == ("fallback:always", 0)


async def test_a_version_that_forbids_missing_values_falls_back(mesh: Any) -> None:
    await mesh.deploy(delays(name="delays", traffic=[share("careful")]))
    async with mesh.gateway() as gate:
        assert (await gate.rpc.Predict(flights("N1"))).served_by == "traffic"
        response = await gate.rpc.Predict(flights("N1", "N3"))
        assert response.served_by == "fallback:rule"
        assert "aircraft__delay has no usable value in row 1" in response.degraded_reason


async def test_strict_takes_stale_for_missing(mesh: Any) -> None:
    strict = registry_pb2.FEATURE_POLICY_STRICT
    await mesh.deploy(delays(traffic=[share("weigh")], feature_policy=strict))
    async with mesh.gateway() as gate:
        response = await gate.rpc.Predict(flights("N2", distance=3.0))
    assert scores(response) == [1003.0]
    assert response.degraded_reason == "features: stale: aircraft__delay"


async def test_registry_and_features_down_at_start(mesh: Any) -> None:
    async with mesh.gateway() as gate:
        await gate.rpc.Predict(flights("N1"))
    await mesh.stop("registry")
    await mesh.stop("features")
    async with mesh.gateway(start_seconds=0.01) as gate:
        assert (await gate.rpc.Predict(flights("N1"))).served_by == "fallback:rule"


async def test_shadows_are_recorded_and_seen_by_nobody(mesh: Any) -> None:
    await mesh.deploy(delays(shadows=[ref("careful")]))
    async with mesh.gateway() as gate:
        response = await gate.rpc.Predict(flights("N1"))
        records = await mesh.ledger.until(2)
    assert response.served_by == "traffic"
    assert [(r.shadow, r.model.model) for r in records] == [(False, "weigh"), (True, "careful")]


async def test_pins(gate: Any) -> None:
    pinned = await gate.rpc.Predict(flights("N1"), metadata=(("treadle-pin-version", "1"),))
    assert pinned.served_by == "pinned"
    with pytest.raises(FailedPrecondition, match="does not name a version 7"):
        await gate.rpc.Predict(flights("N1"), metadata=(("treadle-pin-version", "7"),))
    with pytest.raises(InvalidInput, match="treadle-pin-version"):
        await gate.rpc.Predict(flights("N1"), metadata=(("treadle-pin-version", "latest"),))


async def test_a_stream_answers_each_request_by_its_id(gate: Any) -> None:
    requests = [
        flights("N1", request_id="a"),
        flights("N1", request_id=""),
        flights("N1", request_id="b", outputs=["nonsense"]),
        flights("N2", request_id="c"),
    ]
    answers = {answer.request_id: answer async for answer in gate.rpc.PredictStream(requests)}
    assert answers["a"].response.served_by == "traffic"
    assert answers["c"].response.request_id == "c"
    assert answers["b"].error.code == 3
    assert "nonsense" in answers["b"].error.message
    assert answers["b"].error.details[0].type_url.endswith("google.rpc.BadRequest")
    assert "request_id is required" in answers[""].error.message


async def test_an_expired_deadline_does_no_work(gate: Any) -> None:
    with pytest.raises(DeadlineExceeded):
        await gate.rpc.Predict(flights("N1"), timeout=0)


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        (lambda r: r.ClearField("entities"), "is missing"),
        (lambda r: r.ClearField("context"), r"context\[distance\]"),
        (lambda r: r.context.extend(columns(nonsense=[1.0])), "is used by nothing"),
        (lambda r: r.context.extend(columns(tail=["x"])), "is an entity as well"),
        (lambda r: r.tensors.extend(columns(x=[[1.0, 2.0]])), "exclude entities"),
        (lambda r: r.outputs.append("nonsense"), "is no output; there are score"),
        (lambda r: r.context[0].doubles.values.append(2.0), "has 2 rows"),
        (lambda r: r.entities[0].null_rows.append(0), "every row needs its keys"),
        (lambda r: r.entities[0].ClearField("name"), "has no name"),
        (lambda r: r.entities[0].ClearField("strings"), "has no values"),
    ],
)
async def test_bad_input_is_named(gate: Any, change: Any, wanted: str) -> None:
    request = flights("N1")
    change(request)
    with pytest.raises(InvalidInput, match=wanted):
        await gate.rpc.Predict(request)
    assert (await gate.rpc.Predict(flights("N1"))).served_by == "traffic"


@pytest.mark.parametrize(
    ("tensor", "wanted"),
    [
        ([[1.0]], "shape"),
        ([1.0, 2.0], "shape"),
        ([[1, 2]], "dtype"),
        ([["a", "b"]], "dtype"),
    ],
)
async def test_bad_tensors_are_named(gate: Any, tensor: Any, wanted: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        await gate.rpc.Predict(tensors(x=tensor))
    assert any(wanted in v.description for v in caught.value.violations)


async def test_tensors(shared: Any) -> None:
    async with shared.gateway("small", max_request_rows=2) as gate:
        assert scores(await gate.rpc.Predict(tensors(x=[[1.0, 2.0], [3.0, float("nan")]]))) == [3.0, 1003.0]
        with pytest.raises(InvalidInput, match="3 rows are more than the 2"):
            await gate.rpc.Predict(tensors(x=[[1.0, 2.0]] * 3))
        with pytest.raises(InvalidInput) as caught:
            await gate.rpc.Predict(tensors(nonsense=[[1.0, 2.0]]))
        assert [violation.field for violation in caught.value.violations] == ["nonsense", "x"]
        with pytest.raises(InvalidInput, match="are missing; send entities"):
            await gate.rpc.Predict(prediction_pb2.PredictRequest(deployment="delays"))
        with pytest.raises(NotFound, match="no deployment 'nonsense'; there are delays"):
            await gate.rpc.Predict(prediction_pb2.PredictRequest(deployment="nonsense"))


async def test_the_trace_goes_through_every_hop(mesh: Any) -> None:
    telemetry = Telemetry.recording("gateway")
    parent = ("traceparent", f"00-{'ab' * 16}-{'cd' * 8}-01")
    async with mesh.gateway(telemetry=telemetry) as gate:
        response = await gate.rpc.Predict(flights("N1"), metadata=(parent,))
        await mesh.ledger.until(1)
    assert response.trace_id == "ab" * 16
    spans = {span.name: span for span in telemetry.spans if f"{span.context.trace_id:032x}" == "ab" * 16}
    server = spans["treadle.v1.PredictionService/Predict"]
    said = dict(server.attributes or {})
    assert (said["treadle.deployment"], said["treadle.served_by"], said["treadle.rows"]) == ("delays", "traffic", 1)
    for hop in (
        "treadle.v1.FeatureService/GetOnlineFeatures",
        "inference.GRPCInferenceService/ModelInfer",
        "treadle.v1.EvaluationService/RecordPredictions",
    ):
        parent_span = spans[hop].parent
        context = server.get_span_context()
        assert parent_span is not None
        assert context is not None
        assert parent_span.span_id == context.span_id


async def test_a_message_over_the_limit_is_refused_and_harms_nobody(gate: Any) -> None:
    huge = tensors(x=[[1.0, 2.0]])
    huge.tensors[0].ClearField("doubles")
    huge.tensors[0].raw = bytes(100 << 20)
    with pytest.raises(TreadleError) as caught:
        await gate.rpc.Predict(huge)
    assert caught.value.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    huge.tensors[0].raw = bytes(48 << 20)  # three million rows
    with pytest.raises(InvalidInput, match="3145728 rows are more than the 10000"):
        await gate.rpc.Predict(huge)
    assert (await gate.rpc.Predict(flights("N1"))).served_by == "traffic"
