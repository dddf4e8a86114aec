"""Batches that run on the event loop, and latency estimates."""

import asyncio
import threading
from math import inf

import numpy as np
import pytest

from treadle import oip
from treadle.inference.batching.latency_model import QUICK_SECONDS, LatencyModel
from treadle.plugins.backend import LoadedModel
from treadle.plugins.tensor_spec import TensorSpec
from treadle.plugins.tensors import Signature, Tensors
from treadle.rpc.codec.tensors import decode_outputs, encode_inputs

from ..local import served

QUICK, SLOW = QUICK_SECONDS / 4, QUICK_SECONDS * 2


def paced(*batches: tuple[int, float], bounded: bool = True) -> LatencyModel:
    latency = LatencyModel(bounded=bounded)
    for rows, seconds in batches:
        latency.record(rows, seconds, seconds)
    return latency


def test_a_size_must_be_proven_before_it_runs_on_the_loop() -> None:
    assert not paced(*[(4, QUICK)] * 7).is_quick(1)
    latency = paced(*[(4, QUICK)] * 8)
    assert latency.is_quick(8)  # double of what was proven
    assert not latency.is_quick(9)


def test_a_model_that_might_hang_never_runs_on_the_loop() -> None:
    assert not paced(*[(4, QUICK)] * 100, bounded=False).is_quick(1)


def test_one_batch_over_the_limit_sends_its_size_back_to_the_thread() -> None:
    latency = paced(*[(64, QUICK)] * 8, (64, SLOW))
    assert not latency.is_quick(33)
    assert latency.is_quick(32)
    for _ in range(8):
        latency.record(64, QUICK, QUICK)
    assert latency.is_quick(64)


def test_waiting_for_a_core_does_not_count() -> None:
    latency = LatencyModel(bounded=True)
    for _ in range(8):
        latency.record(4, 1.0, QUICK)
    assert latency.is_quick(4)


def test_estimates_follow_measured_batches() -> None:
    latency = paced((1, 0.010), (101, 0.110))  # 10 ms, and one for each row more
    assert latency.estimate_seconds(1, 1024) == pytest.approx(0.010)
    assert latency.estimate_seconds(51, 1024) == pytest.approx(0.060)
    assert latency.estimate_seconds(20, 10) == pytest.approx(2 * 0.019)
    assert latency.capacity_within(0.060, 1024) == pytest.approx(51)
    assert latency.capacity_within(0.060, 10) == pytest.approx(30, abs=1)


def test_estimates_before_the_first_batch() -> None:
    latency = LatencyModel(bounded=True)
    assert latency.estimate_seconds(1000, 10) == 0
    assert latency.capacity_within(0.1, 10) == inf


class Where(LoadedModel):
    """Records the thread on which it runs."""

    def __init__(self, *, bounded: bool) -> None:
        self.bounded = bounded  # type: ignore[misc]  # of the class, but this test is about both

    def predict(self, inputs: Tensors) -> Tensors:
        return {"thread": np.full(len(inputs["x"]), threading.get_ident(), np.uint64)}


@pytest.mark.parametrize("bounded", [True, False])
async def test_quick_models_run_on_the_loop_and_others_on_their_thread(bounded: bool) -> None:
    signature = Signature((TensorSpec("x", "FP32", (-1,)),), (TensorSpec("thread", "UINT64", (-1,)),))
    message = oip.ModelInferRequest(model_name="m")
    encode_inputs(message, {"x": np.zeros(1, np.float32)})
    threads = []
    async with served(Where(bounded=bounded), signature) as servicer:
        async with asyncio.timeout(20):
            while not bounded or threading.get_ident() not in threads:
                answer = await servicer.ModelInfer(message, None)
                threads.append(int(decode_outputs(answer)["thread"][0]))
                if not bounded and len(threads) == 100:
                    break
    assert threads[0] != threading.get_ident()
    assert len(set(threads)) == 1 + bounded
