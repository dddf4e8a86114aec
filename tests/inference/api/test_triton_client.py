"""tritonclient from PyPI against the service, with scikit-learn behind it."""

import asyncio
import queue
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton
from sklearn.linear_model import LogisticRegression

from treadle.client import AsyncClient
from treadle.plugins.packaging import save_model


@pytest.fixture
async def client(registry: Any, inference: Any, tmp_path: Path) -> AsyncIterator[triton.InferenceServerClient]:
    """A blocking client; tests call it in threads."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 3)).astype(np.float32)
    model = LogisticRegression().fit(x, x.sum(axis=1) > 0)
    await asyncio.to_thread(save_model, model, tmp_path / "lr", {"x": x[:8]})
    async with AsyncClient(registry.address) as pushing:
        await pushing.push_model("lr", tmp_path / "lr")
    client = triton.InferenceServerClient(inference.address)
    await asyncio.to_thread(client.load_model, "lr")
    yield client
    await asyncio.to_thread(client.close)


def _input(rows: int) -> triton.InferInput:
    x = np.linspace(-1, 1, rows * 3, dtype=np.float32).reshape(rows, 3)
    tensor = triton.InferInput("x", [rows, 3], "FP32")
    tensor.set_data_from_numpy(x)
    return tensor


async def test_health_metadata_and_repository(client: triton.InferenceServerClient) -> None:
    def ask() -> None:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("lr")
        assert client.is_model_ready("lr", "1")
        assert "model_repository" in client.get_server_metadata().extensions
        metadata = client.get_model_metadata("lr")
        assert (metadata.platform, list(metadata.versions)) == ("sklearn", ["1"])
        assert [(t.name, t.datatype, list(t.shape)) for t in metadata.inputs] == [("x", "FP32", [-1, 3])]
        config = client.get_model_config("lr").config
        assert (config.name, config.backend, config.max_batch_size) == ("lr", "sklearn", 1024)
        assert [(m.name, m.version, m.state) for m in client.get_model_repository_index().models] == [
            ("lr", "1", "READY")
        ]
        client.infer("lr", [_input(4)])
        assert client.get_inference_statistics("lr").model_stats[0].inference_count == 4
        client.unload_model("lr")
        assert not client.get_model_repository_index().models
        with pytest.raises(triton.InferenceServerException, match="is not here") as caught:
            client.infer("lr", [_input(1)])
        assert caught.value.status() == "StatusCode.NOT_FOUND"

    await asyncio.to_thread(ask)


async def test_raw_and_typed_contents_give_equal_results(client: triton.InferenceServerClient, inference: Any) -> None:
    from treadle import oip
    from treadle.rpc.codec.tensors import decode_outputs

    result = await asyncio.to_thread(
        client.infer,
        "lr",
        [_input(5)],
        request_id="7",
        outputs=[triton.InferRequestedOutput("probability"), triton.InferRequestedOutput("label")],
    )
    assert result.get_response().id == "7"
    typed = oip.ModelInferRequest(model_name="lr")
    typed.inputs.add(name="x", datatype="FP32", shape=[5, 3]).contents.fp32_contents.extend(
        np.linspace(-1, 1, 15, dtype=np.float32)
    )
    typed.outputs.add(name="probability")
    response = await inference.stub.ModelInfer(typed)
    assert not response.raw_output_contents
    assert [output.name for output in response.outputs] == ["probability"]
    np.testing.assert_array_equal(decode_outputs(response)["probability"], result.as_numpy("probability"))


async def test_stream(client: triton.InferenceServerClient) -> None:
    def ask() -> list[str]:
        answers: queue.Queue[Any] = queue.Queue()
        client.start_stream(lambda result, error: answers.put(error or result))
        for number in range(8):
            client.async_stream_infer("lr" if number != 3 else "nobody", [_input(1)], request_id=str(number))
        found = [answers.get(timeout=20) for _ in range(8)]
        client.stop_stream()
        return [
            "error" if isinstance(answer, triton.InferenceServerException) else answer.get_response().id
            for answer in found
        ]

    assert await asyncio.to_thread(ask) == ["0", "1", "2", "error", "4", "5", "6", "7"]
