"""Other services' RPCs and the Open Inference Protocol through the gateway."""

import asyncio
import hashlib
import threading
from typing import Any

import numpy as np
import pytest

from treadle import oip
from treadle.core.errors import DataLoss, InvalidInput, NotFound, Unavailable
from treadle.observability.telemetry.telemetry import Telemetry
from treadle.rpc.app.serving import running
from treadle.rpc.codec.tensors import decode_outputs, encode_inputs
from treadle.traces import service as traces
from treadle.v1 import (
    evaluation_pb2,
    evaluation_pb2_grpc,
    features_pb2,
    features_pb2_grpc,
    registry_pb2,
    registry_pb2_grpc,
    traces_pb2,
    traces_pb2_grpc,
)

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def test_calls_of_all_four_kinds_go_through(gate: Any) -> None:
    registry = gate.stub(registry_pb2_grpc.RegistryServiceStub)
    models = await registry.ListModels(registry_pb2.ListModelsRequest())
    assert {model.name for model in models.models} >= {"careful", "rule", "weigh"}

    async for event in registry.WatchDeployments(registry_pb2.WatchDeploymentsRequest()):
        if event.caught_up:
            break
        assert event.applied.name == "delays"

    content = b"bytes" * 1_000

    def parts(digest: str) -> list[registry_pb2.UploadArtifactRequest]:
        header = registry_pb2.UploadArtifactRequest.Header(sha256=digest, size_bytes=len(content))
        return [registry_pb2.UploadArtifactRequest(header=header), registry_pb2.UploadArtifactRequest(chunk=content)]

    digest = hashlib.sha256(content).hexdigest()
    assert (await registry.UploadArtifact(parts(digest))).size_bytes == len(content)
    with pytest.raises(DataLoss):
        await registry.UploadArtifact(parts("0" * 64))


async def test_the_actor_is_passed_on(gate: Any) -> None:
    registry = gate.stub(registry_pb2_grpc.RegistryServiceStub)
    request = registry_pb2.CreateModelRequest(name="mine")
    await registry.CreateModel(request, metadata=(("treadle-actor", "ada"),))
    history = await registry.ListHistory(registry_pb2.ListHistoryRequest(subject_prefix="mine"))
    assert history.events[0].actor == "ada"


async def test_errors_arrive_with_their_details(mesh: Any) -> None:
    async with mesh.gateway() as gate:
        features = gate.stub(features_pb2_grpc.FeatureServiceStub)
        with pytest.raises(NotFound, match="nonsense"):
            await features.GetOnlineFeatures(features_pb2.GetOnlineFeaturesRequest(feature_service="nonsense"))
        with pytest.raises(InvalidInput) as caught:
            await features.GetOnlineFeatures(features_pb2.GetOnlineFeaturesRequest(feature_service="flights"))
        assert caught.value.violations
        evaluation = gate.stub(evaluation_pb2_grpc.EvaluationServiceStub)
        stages = []
        with pytest.raises(InvalidInput, match="lacks a column"):
            async for event in evaluation.Evaluate(evaluation_pb2.EvaluateRequest()):
                stages.append(event.progress.stage)  # noqa: PERF401  # what came before the error is kept
        assert stages == ["loading"]
        await mesh.stop("features")
        with pytest.raises(Unavailable):
            await features.ListFeatureViews(features_pb2.ListFeatureViewsRequest())


async def test_the_trace_store_is_reached_through_the_gateway_which_records_no_span_of_it(
    mesh: Any, tmp_path: Any
) -> None:
    telemetry = Telemetry.recording("gateway")
    async with running(traces.open_service, traces.TraceSettings(), home=tmp_path / "traces") as address:
        mesh.addresses["traces"] = address
        async with mesh.gateway(telemetry=telemetry) as gate:
            store = gate.stub(traces_pb2_grpc.TraceQueryServiceStub)
            assert not (await store.SlowestTraces(traces_pb2.SlowestTracesRequest())).traces
            with pytest.raises(NotFound, match="no trace abcd"):
                await store.GetTrace(traces_pb2.GetTraceRequest(trace_id="abcd"))
    assert not [span.name for span in telemetry.spans if "Trace" in span.name]


async def test_a_trace_store_that_is_down_or_not_there_is_named(mesh: Any) -> None:
    request = traces_pb2.SlowestTracesRequest()
    async with mesh.gateway() as gate:
        with pytest.raises(Unavailable, match=r"no traces service: .* TREADLE_PEER_TRACES"):
            await gate.stub(traces_pb2_grpc.TraceQueryServiceStub).SlowestTraces(request)
        assert (
            await gate.stub(registry_pb2_grpc.RegistryServiceStub).ListModels(registry_pb2.ListModelsRequest())
        ).models
    mesh.addresses["traces"] = "127.0.0.1:1"
    async with mesh.gateway() as gate:
        with pytest.raises(Unavailable, match=r"the traces service at 127\.0\.0\.1:1 cannot be reached"):
            await gate.stub(traces_pb2_grpc.TraceQueryServiceStub).SlowestTraces(request)


async def test_garbage_is_the_services_to_refuse(gate: Any) -> None:
    call = gate.channel.unary_unary("/treadle.v1.RegistryService/GetModel")
    with pytest.raises(InvalidInput):
        await call(b"\xff\xff\xff")
    assert await gate.channel.unary_unary("/treadle.v1.RegistryService/ListModels")(b"")


def request(name: str = "delays", **more: Any) -> oip.ModelInferRequest:
    made = oip.ModelInferRequest(model_name=name, id="7", **more)
    encode_inputs(made, {"x": np.array([[1.0, 2.0], [3.0, 4.0]])})
    return made


async def test_infer_on_a_deployment_is_a_prediction(mesh: Any) -> None:
    async with mesh.gateway() as gate:
        response = await oip.GRPCInferenceServiceStub(gate.channel).ModelInfer(request())
        (record,) = await mesh.ledger.until(1)
    assert (response.model_name, response.model_version, response.id) == ("delays", "1", "7")
    assert decode_outputs(response)["score"].tolist() == [3.0, 7.0]
    assert response.parameters["treadle_served_by"].string_param == "traffic"
    assert response.parameters["treadle_prediction_ids"].string_param.split(",") == list(record.prediction_ids)


async def test_infer_on_a_model_is_passed_on(gate: Any) -> None:
    response = await oip.GRPCInferenceServiceStub(gate.channel).ModelInfer(request("weigh", model_version="1"))
    assert decode_outputs(response)["score"].tolist() == [3.0, 7.0]
    with pytest.raises(NotFound):
        await oip.GRPCInferenceServiceStub(gate.channel).ModelInfer(request("nonsense"))


async def test_infer_falls_back_when_inference_is_down(mesh: Any) -> None:
    async with mesh.gateway() as gate:
        await mesh.stop("inference")
        response = await oip.GRPCInferenceServiceStub(gate.channel).ModelInfer(request())
    assert decode_outputs(response)["score"].tolist() == [0.5, 0.5]
    assert response.parameters["treadle_served_by"].string_param == "fallback:always"


@pytest.mark.parametrize("name", ["delays", "weigh"])
async def test_tritonclient(gate: Any, name: str) -> None:
    await asyncio.to_thread(use_tritonclient, gate.address, name)


def use_tritonclient(address: str, name: str) -> None:
    import tritonclient.grpc as triton

    client = triton.InferenceServerClient(address)
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready(name)
    assert client.get_server_metadata().name
    metadata = client.get_model_metadata(name)
    assert (metadata.name, metadata.inputs[0].name, list(metadata.versions)) == (name, "x", ["1"])
    assert client.get_model_config(name).config.name == name
    tensor = triton.InferInput("x", [1, 2], "FP64")
    tensor.set_data_from_numpy(np.array([[1.0, 2.0]]))
    assert client.infer(name, [tensor]).as_numpy("score").tolist() == [3.0]
    assert client.get_inference_statistics(name).model_stats[0].name == name
    answers: list[Any] = []
    done = threading.Semaphore(0)

    def arrived(result: Any, error: Any) -> None:
        answers.append(error or result.as_numpy("score").tolist())
        done.release()

    client.start_stream(arrived)
    for _ in range(3):
        client.async_stream_infer(name, [tensor])
        assert done.acquire(timeout=10)
    client.stop_stream()
    assert answers == [[3.0]] * 3
    client.close()


async def test_typed_contents_are_answered_in_kind(gate: Any) -> None:
    typed = oip.ModelInferRequest(model_name="delays")
    encode_inputs(typed, {"x": np.array([[1.0, 2.0]])}, raw=False)
    response = await oip.GRPCInferenceServiceStub(gate.channel).ModelInfer(typed)
    assert not response.raw_output_contents
    assert list(response.outputs[0].contents.fp64_contents) == [3.0]
    typed.raw_input_contents.append(b"\0" * 16)
    with pytest.raises(InvalidInput, match="both"):
        await oip.GRPCInferenceServiceStub(gate.channel).ModelInfer(typed)
    raw = request()
    raw.raw_input_contents[0] = b"\0" * 7
    with pytest.raises(InvalidInput, match="7 raw bytes"):
        await oip.GRPCInferenceServiceStub(gate.channel).ModelInfer(raw)
