"""Clients that are not ours: tritonclient, server reflection, a stub made from the shipped protos alone."""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

pytestmark = pytest.mark.slow

PROTOS = Path(__file__).parents[2] / "protos"


@pytest.fixture(params=["gateway", "inference"])
def triton(shop, request):
    """tritonclient, connected to the gateway and to the inference service."""
    import tritonclient.grpc as triton

    with triton.InferenceServerClient(shop.mesh.address(request.param)) as client:
        yield triton, client


def features(triton, rows=3):
    tensor = triton.InferInput("features", [rows, 4], "FP64")
    tensor.set_data_from_numpy(np.ones((rows, 4)))
    return tensor


def test_tritonclient_asks_for_health_and_metadata(triton):
    _, client = triton
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("purchase")
    metadata = client.get_model_metadata("purchase")
    assert [tensor.name for tensor in metadata.inputs] == ["features"]
    assert client.get_model_config("purchase").config.name == "purchase"
    assert client.get_inference_statistics("purchase").model_stats


def test_tritonclient_infers(triton):
    module, client = triton
    answer = client.infer("purchase", [features(module)], outputs=[module.InferRequestedOutput("probability")])
    assert answer.as_numpy("probability").shape == (3, 2)


def test_tritonclient_streams(triton):
    import queue

    module, client = triton
    answers: queue.Queue[tuple[Any, Exception | None]] = queue.Queue()
    client.start_stream(lambda result, error: answers.put((result, error)))
    for number in range(3):
        client.async_stream_infer("purchase", [features(module, number + 1)], request_id=str(number))
    got = [answers.get(timeout=20) for _ in range(3)]
    client.stop_stream()
    assert [error for _, error in got if error] == []
    assert sorted(result.as_numpy("probability").shape[0] for result, _ in got) == [1, 2, 3]


@pytest.mark.parametrize("service", ["gateway", "features", "inference", "evaluation", "registry"])
def test_reflection_lists_and_describes_every_service(shop, service):
    with grpc.insecure_channel(shop.mesh.address(service)) as channel:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        request = reflection_pb2.ServerReflectionRequest
        (listed,) = stub.ServerReflectionInfo(iter([request(list_services="")]))
        names = [found.name for found in listed.list_services_response.service]
        described = list(stub.ServerReflectionInfo(iter([request(file_containing_symbol=name) for name in names])))
    assert "grpc.health.v1.Health" in names
    assert [d for d in described if not d.file_descriptor_response.file_descriptor_proto] == []
    if service == "gateway":
        ours = {"PredictionService", "RegistryService", "FeatureService", "EvaluationService"}
        assert {f"treadle.v1.{name}" for name in ours} | {"inference.GRPCInferenceService"} <= set(names)


CALLER = """
import sys
import grpc
from treadle.v1 import prediction_pb2, prediction_pb2_grpc
assert not any("treadle/rpc" in str(m) for m in sys.modules.values()), "Treadle itself was imported"
with grpc.insecure_channel(sys.argv[1]) as channel:
    request = prediction_pb2.PredictRequest(deployment="purchase")
    request.entities.add(name="customer").int64s.values.append(1)
    request.context.add(name="basket").doubles.values.append(20.0)
    print(prediction_pb2_grpc.PredictionServiceStub(channel).Predict(request).served_by)
"""


def test_a_stub_made_from_the_protos_alone_can_predict(shop, tmp_path):
    shutil.copytree(PROTOS / "treadle/v1", tmp_path / "protos/treadle/v1", ignore=shutil.ignore_patterns("*.py*"))
    import grpc_tools
    from google.rpc import status_pb2

    well_known = Path(grpc_tools.__file__).parent / "_proto"
    googleapis = Path(status_pb2.__file__).parents[2]
    contracts = sorted(str(p.relative_to(tmp_path / "protos")) for p in (tmp_path / "protos").rglob("*.proto"))
    out = tmp_path / "client"
    out.mkdir()
    paths = [f"-I{tmp_path / 'protos'}", f"-I{well_known}", f"-I{googleapis}"]
    subprocess.run(
        [
            sys.executable,
            "-m",
            "grpc_tools.protoc",
            *paths,
            f"--python_out={out}",
            f"--grpc_python_out={out}",
            *contracts,
        ],
        check=True,
    )
    # -I and -S keep this environment's Treadle out; only the libraries that any client has are let in.
    bootstrap = f"import sys; sys.path[:0] = [{str(out)!r}]; sys.path.append({str(googleapis)!r});" + CALLER
    command = [sys.executable, "-I", "-S", "-c", bootstrap, shop.mesh.address("gateway")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "traffic", done.stderr
