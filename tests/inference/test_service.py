"""The service over real gRPC, with a real registry: lifecycle, bad input, misbehaving backends."""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from treadle import oip
from treadle.core.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    Internal,
    InvalidInput,
    NotFound,
    TreadleError,
    Unavailable,
)
from treadle.core.model_ref import ModelRef
from treadle.inference.models.models import ModelFile
from treadle.observability.telemetry.telemetry import Telemetry
from treadle.rpc.codec.tensors import decode_outputs, encode_inputs

from ..conftest import BasePort
from .conftest import HANG, RAISE, WRONG


def request(*rows: tuple[float, float], raw: bool = True, **fields: Any) -> oip.ModelInferRequest:
    made = oip.ModelInferRequest(**{"model_name": "odd-model", **fields})
    encode_inputs(made, {"x": np.array(rows, np.float32).reshape(-1, 2)}, raw=raw)
    return made


async def sums(inference: Any, *rows: tuple[float, float], **fields: Any) -> list[float]:
    response = await inference.stub.ModelInfer(request(*rows, **fields), timeout=20)
    return list(decode_outputs(response)["sum"])


@pytest.fixture
async def ready(registry: Any, inference: Any) -> Any:
    """The service with version 1 of the odd model."""
    await registry.push_odd()
    await inference.load()
    return inference


async def test_deployed_versions_are_loaded_and_unloaded(registry: Any, inference: Any) -> None:
    first, second = await registry.push_odd(), await registry.push_odd()
    await registry.deploy("live", odd_model=first)
    await inference.until("odd-model", first, "READY")
    assert await sums(inference, (1, 2), (3, 4)) == [3, 7]
    with pytest.raises(FailedPrecondition, match="deployments need odd-model/1"):
        await inference.stub.RepositoryModelUnload(oip.RepositoryModelUnloadRequest(model_name="odd-model"))
    await inference.load(version=second)
    response = await inference.stub.ModelInfer(request((1, 1)))
    assert response.model_version == str(first)  # what deployments ask for goes before what is only loaded
    await registry.deploy("live", odd_model=second)
    await inference.until("odd-model", first, "")
    assert (await inference.stub.ModelInfer(request((1, 1)))).model_version == str(second)


async def test_serves_after_a_restart_without_the_registry(run_registry: Any, serve: Any) -> None:
    async with run_registry() as registry:
        await registry.push_odd()
        pinned = await registry.push_odd("pinned-model")
        await registry.deploy("live", odd_model=1)
        async with serve(registry.address) as inference:
            await inference.until("odd-model", 1, "READY")
            await inference.load("pinned-model")
    async with serve(registry.address) as inference:
        await inference.until("odd-model", 1, "READY")
        await inference.until("pinned-model", pinned, "READY")
        assert await sums(inference, (1, 2)) == [3]


async def test_a_corrupt_cached_file_is_fetched_again(registry: Any, inference: Any, tmp_path: Path) -> None:
    await registry.push_odd()
    await inference.load()
    digest = hashlib.sha256(b"weights").hexdigest()
    cached = tmp_path / "inference" / "artifacts" / digest[:2] / digest
    await inference.stub.RepositoryModelUnload(oip.RepositoryModelUnloadRequest(model_name="odd-model"))
    await asyncio.to_thread(cached.write_bytes, b"weightz")
    await inference.load()
    assert await asyncio.to_thread(cached.read_bytes) == b"weights"


async def test_an_artifact_that_is_corrupt_in_the_registry_is_never_loaded(
    registry: Any, inference: Any, tmp_path: Path, odd: Any
) -> None:
    version = await registry.push_odd()

    def corrupt() -> None:
        stored = [p for p in (tmp_path / "registry").rglob("*") if p.is_file() and p.read_bytes() == b"weights"]
        for path in stored:
            path.chmod(0o644)
            path.write_bytes(b"weightz")
        assert stored

    await asyncio.to_thread(corrupt)
    await registry.deploy("live", odd_model=version)
    assert await inference.until("odd-model", version, "UNAVAILABLE")
    assert not odd.loaded
    assert not await asyncio.to_thread(lambda: list((tmp_path / "inference" / "artifacts").rglob("*.draft")))


async def test_a_registry_with_another_history_is_followed(run_registry: Any, serve: Any) -> None:
    async with run_registry() as registry:
        await registry.push_odd()
        await registry.push_odd("old-model")
        await registry.deploy("first", odd_model=1)
        await registry.deploy("second", old_model=1)
        async with serve(registry.address) as inference:
            await inference.until("old-model", 1, "READY")
    async with run_registry("another") as registry:
        await registry.push_odd()
        await registry.deploy("first", odd_model=1)
        async with serve(registry.address) as inference:
            await inference.until("odd-model", 1, "READY")
            await inference.until("old-model", 1, "")


async def test_a_registry_that_starts_later_is_found(run_registry: Any, serve: Any, base_port: BasePort) -> None:
    address = f"127.0.0.1:{base_port()}"
    async with run_registry(listen=address) as registry:
        await registry.push_odd()
        await registry.deploy("live", odd_model=1)
    async with serve(address) as inference:
        with pytest.raises(Unavailable):
            await inference.load()
        async with run_registry(listen=address):
            await inference.until("odd-model", 1, "READY")


async def test_a_cancelled_call_leaves_nothing_behind(ready: Any, odd: Any) -> None:
    first = asyncio.create_task(sums(ready, (HANG, 0)))
    await asyncio.to_thread(odd.hanging.wait)
    cancelled = [asyncio.create_task(sums(ready, (i, 0))) for i in range(5)]
    with pytest.raises(DeadlineExceeded):
        await ready.stub.ModelInfer(request((1, 2)), timeout=0.2)
    for task in cancelled:
        task.cancel()
    await asyncio.gather(*cancelled, return_exceptions=True)
    odd.release.set()
    assert await first == [HANG]
    assert await sums(ready, (1, 2)) == [3]


@pytest.mark.parametrize("path", ["", "../x", "/etc/passwd", "a/../../b", "a\\b", "a\0b"])
def test_unsafe_paths_in_manifests(path: str) -> None:
    with pytest.raises(InvalidInput, match="unusable path"):
        ModelFile(path, "0" * 64, 1)
    with pytest.raises(InvalidInput):
        ModelRef.checked("../evil", 1)


async def test_a_version_that_does_not_reproduce_its_sample_is_not_served(registry: Any, inference: Any) -> None:
    version = await registry.push_odd(expected=3.5)
    await registry.deploy("live", odd_model=version)
    reason = await inference.until("odd-model", version, "UNAVAILABLE")
    assert "output 'sum' differs" in reason
    with pytest.raises(Unavailable, match="UNAVAILABLE"):
        await sums(inference, (1, 2))


async def test_backends_that_fail_to_load(registry: Any, serve: Any) -> None:
    async with serve(registry.address, load_timeout_seconds=1.0) as inference:
        await registry.push_odd("raises", load="raise")
        await registry.push_odd("hangs", load="hang")
        await registry.push_odd("unknown-option", speed="2")
        await registry.push_odd("not-installed", backend="nowhere")
        await registry.push_odd("not-importable", backend="unimportable")
        await registry.deploy("live", raises=1, hangs=1, unknown_option=1, not_installed=1, not_importable=1)
        assert "OSError" in await inference.until("raises", 1, "UNAVAILABLE")
        assert "given up" in await inference.until("hangs", 1, "UNAVAILABLE")
        assert "no option 'speed'" in await inference.until("unknown-option", 1, "UNAVAILABLE")
        assert "nowhere" in await inference.until("not-installed", 1, "UNAVAILABLE")
        assert "No module named 'module_of_nobody'" in await inference.until("not-importable", 1, "UNAVAILABLE")
        await registry.push_odd()
        await inference.load()  # the others are unharmed
        with pytest.raises(TreadleError, match="OSError"):
            await inference.load("raises")


async def test_a_batch_with_bad_rows_fails_only_their_requests(ready: Any) -> None:
    async def one(row: tuple[float, float]) -> list[float] | str:
        try:
            return await sums(ready, row)
        except Internal as error:
            return error.message

    rows = [(float(i), 1.0) for i in range(20)]
    bad = [(RAISE, 0.0), (WRONG, 0.0)]
    answers = await asyncio.gather(*(one(row) for row in [*rows[:10], *bad, *rows[10:]]))
    assert answers[:10] + answers[12:] == [[i + 1.0] for i in range(20)]
    assert answers[10] == "model odd-model/1: the model raised ValueError"
    assert "odd-model/1" in str(answers[11])
    assert "signature" in str(answers[11])
    assert "17.25" not in str(answers)


async def test_a_model_that_hangs_becomes_unavailable_and_others_go_on(registry: Any, serve: Any, odd: Any) -> None:
    async with serve(registry.address, predict_timeout_seconds=1.0) as inference:
        await registry.push_odd()
        await registry.push_odd("other-model")
        await inference.load()
        await inference.load("other-model")
        with pytest.raises(Unavailable, match="hangs"):
            await sums(inference, (HANG, 0))
        with pytest.raises(Unavailable, match="thread was abandoned"):
            await sums(inference, (1, 1))
        ready = await inference.stub.ModelReady(oip.ModelReadyRequest(name="odd-model"))
        assert not ready.ready
        assert await sums(inference, (1, 2), model_name="other-model") == [3]
        await inference.load()  # anew
        assert await sums(inference, (1, 2)) == [3]


def _raw(content: bytes, shape: list[int], datatype: str = "FP32", **fields: Any) -> oip.ModelInferRequest:
    made = oip.ModelInferRequest(model_name="odd-model", raw_input_contents=[content], **fields)
    made.inputs.add(name="x", datatype=datatype, shape=shape)
    return made


def _both() -> oip.ModelInferRequest:
    made = request((1, 2))
    made.inputs[0].contents.fp32_contents.extend([1, 2])
    return made


def _with(parameter: str) -> oip.ModelInferRequest:
    made = request((1, 2))
    made.parameters[parameter].int64_param = 1
    return made


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (_both(), "both contents and raw"),
        (_raw(bytes(7), [1, 2]), "7 raw bytes"),
        (_raw(bytes(8), [-1, 2]), "negative size"),
        (_raw(bytes(8), [1 << 40, 1 << 40]), "rows; 100000 is the limit"),
        (_raw(bytes(8), [2, 1 << 62]), "impossible shape"),
        (_raw(bytes(8), [1]), "8 raw bytes; shape"),
        (_raw(bytes(4), [1]), "shape is"),
        (_raw(b"", [0, 2]), "no rows"),
        (_raw(bytes(16), [1, 2], "FP64"), "FP32 is wanted"),
        (_raw(bytes(4), [1, 2], "BF16"), "is BF16, which is not supported"),
        (_raw(bytes(4), [1, 2], "FP31"), "unknown datatype"),
        (_raw(bytes(8), [10_000_000, 2]), "10000000 rows"),
        (request((float("nan"), 1)), "NaN"),
        (request((1, 2), outputs=[oip.ModelInferRequest.InferRequestedOutputTensor(name="nope")]), "unknown"),
        (request((1, 2), model_version="first"), "no version"),
        (_with("sequence_id"), "sequence_id"),
        (oip.ModelInferRequest(model_name="odd-model"), "missing"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_bad_requests_are_invalid_and_say_why(ready: Any, bad: oip.ModelInferRequest, says: str) -> None:
    with pytest.raises(InvalidInput) as caught:  # the text is looked for in the details, too
        await ready.stub.ModelInfer(bad)
    assert says in caught.value.message + str(caught.value.violations)
    assert await sums(ready, (1, 2)) == [3]


@pytest.mark.parametrize("name", ["nobody", "../../etc/passwd", "", "x" * 5000])
async def test_unknown_models(ready: Any, name: str) -> None:
    with pytest.raises(NotFound):
        await sums(ready, (1, 2), model_name=name)
    with pytest.raises((NotFound, InvalidInput)):
        await ready.load(name or "nobody", version=7)
    with pytest.raises(NotFound):
        await sums(ready, (1, 2), model_version="99")


async def test_expired_deadline(ready: Any) -> None:
    late = request((1, 2))
    late.parameters["timeout"].int64_param = 0
    with pytest.raises(DeadlineExceeded):
        await ready.stub.ModelInfer(late)


async def test_a_full_queue_pushes_back(registry: Any, serve: Any, odd: Any) -> None:
    async with serve(registry.address, queue_rows=2) as inference:
        await registry.push_odd()
        await inference.load()
        calls = [asyncio.create_task(sums(inference, (HANG, 0)))]
        await asyncio.to_thread(odd.hanging.wait)
        calls += [asyncio.create_task(sums(inference, (i, 0))) for i in range(8)]
        done, _ = await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
        refused = next(iter(done)).exception()
        assert isinstance(refused, TreadleError)
        assert refused.retryable
        assert refused.retry_after_seconds
        odd.release.set()
        assert await calls[0] == [HANG]
        await asyncio.gather(*calls, return_exceptions=True)


async def test_a_stream_answers_in_order_and_goes_on_after_an_error(ready: Any) -> None:
    def requests(bad: int, total: int) -> list[oip.ModelInferRequest]:
        names = ["nobody" if i == bad else "odd-model" for i in range(total)]
        return [request((i, 1), id=str(i), model_name=name) for i, name in enumerate(names)]

    answers = [answer async for answer in ready.stub.ModelStreamInfer(requests(20, 50))]
    assert [answer.infer_response.id for answer in answers] == [str(i) for i in range(50)]
    assert [bool(answer.error_message) for answer in answers] == [i == 20 for i in range(50)]
    with pytest.raises(NotFound):
        async for _ in ready.stub.ModelStreamInfer(requests(2, 3), metadata=(("triton_grpc_error", "true"),)):
            pass


async def test_a_cancelled_stream_ends_though_its_queue_is_full(registry: Any, serve: Any, odd: Any) -> None:
    sent_many = asyncio.Event()

    async def endless() -> AsyncIterator[oip.ModelInferRequest]:
        yield request((1, 0), model_name="other-model")  # not in one batch with what hangs
        for number in count():
            if number == 100:
                sent_many.set()
            yield request((HANG, 0))

    telemetry = Telemetry.recording("inference")
    async with serve(registry.address, telemetry, stream_in_flight=2) as inference:
        await registry.push_odd()
        await registry.push_odd("other-model")
        await inference.load()
        await inference.load("other-model")
        answers = inference.stub.ModelStreamInfer(endless())
        assert not (await anext(answers)).error_message
        await asyncio.to_thread(odd.hanging.wait)
        await sent_many.wait()
        await answers.aclose()
        async with asyncio.timeout(20):  # the handler's span ends with the handler, while the model still hangs
            while not any(span.name.endswith("/ModelStreamInfer") for span in telemetry.spans):
                await asyncio.sleep(0.01)
        odd.release.set()
        assert await sums(inference, (1, 2)) == [3]


async def test_a_large_request_is_split_and_merged(registry: Any, serve: Any, odd: Any) -> None:
    async with serve(registry.address, max_batch_rows=16) as inference:
        await registry.push_odd()
        await inference.load()
        rows = [(float(i), 0.0) for i in range(100)]
        assert await sums(inference, *rows) == [float(i) for i in range(100)]
        assert max(odd.loaded[-1].batches) == 16


async def test_statistics_config_and_metrics(registry: Any, serve: Any) -> None:
    telemetry = Telemetry.recording("inference")
    async with serve(registry.address, telemetry) as inference:
        await registry.push_odd()
        await inference.load()
        await asyncio.gather(*(sums(inference, (1, 2), (3, 4)) for _ in range(10)))
        with pytest.raises(InvalidInput):
            await sums(inference)
        stats = (await inference.stub.ModelStatistics(oip.ModelStatisticsRequest(name="odd-model"))).model_stats[0]
        assert (stats.inference_count, stats.inference_stats.success.count) == (20, 10)
        assert stats.inference_stats.fail.count == 1
        assert sum(b.batch_size * b.compute_infer.count for b in stats.batch_stats) == 20
        assert stats.execution_count == sum(b.compute_infer.count for b in stats.batch_stats)
        config = (await inference.stub.ModelConfig(oip.ModelConfigRequest(name="odd-model"))).config
        assert [list(i.dims) for i in config.input] == [[2]]
        labels = {"model": "odd-model", "version": "1"}
        async with asyncio.timeout(20):
            while telemetry.meters.registry.get_sample_value("treadle_model_rows_total", labels) != 20:
                await asyncio.sleep(0.01)
    batches = [span for span in telemetry.spans if span.name == "treadle.batch"]
    requests = {
        span.context.span_id: span for span in telemetry.spans if span.name.endswith("/ModelInfer") and span.context
    }
    linked = [link.context.span_id for span in batches for link in span.links]
    assert sorted(linked) == sorted(
        number for number, span in requests.items() if "treadle.batch.id" in (span.attributes or {})
    )
    assert len(linked) == 10


async def test_health_names_models(registry: Any, serve: Any) -> None:
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    from treadle.rpc.client.channel import Channel

    async with (
        serve(registry.address) as inference,
        Channel(inference.address, service="inference", telemetry=Telemetry.off()) as channel,
    ):
        await registry.push_odd()
        await inference.load()
        stub = health_pb2_grpc.HealthStub(channel)
        for name in ("model/odd-model/1", "model/odd-model", oip.SERVICE):
            status = await stub.Check(health_pb2.HealthCheckRequest(service=name))
            assert status.status == health_pb2.HealthCheckResponse.SERVING
        await inference.stub.RepositoryModelUnload(oip.RepositoryModelUnloadRequest(model_name="odd-model"))
        status = await stub.Check(health_pb2.HealthCheckRequest(service="model/odd-model/1"))
        assert status.status == health_pb2.HealthCheckResponse.NOT_SERVING
