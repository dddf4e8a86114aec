"""One span for each batch, linked to every traced request in it; batch parameters of traced responses."""

import asyncio
from typing import Any

import numpy as np
import pytest
from opentelemetry import trace
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags

from treadle import oip
from treadle.inference.api.data_plane import BATCH_ID, BATCH_SIZE, QUEUE_MS
from treadle.observability.telemetry.telemetry import Telemetry
from treadle.rpc import tracing
from treadle.rpc.codec.tensors import encode_inputs

from ..local import served
from .test_batching_laws import EVERYTHING, NUMBERS, Rowwise, gate_keeper, handled


def _span(number: int, *, sampled: bool = True) -> trace.Span:
    """A span of the host: known by its ids, and not recording in this process."""
    flags = TraceFlags(TraceFlags.SAMPLED if sampled else TraceFlags.DEFAULT)
    return NonRecordingSpan(SpanContext(1 << 64 | number + 1, number + 1, is_remote=True, trace_flags=flags))


async def _traced(servicer: Any, message: oip.ModelInferRequest, span: trace.Span) -> Any:
    with tracing.active(span):
        return await handled(servicer, message)


def _numbered(number: int) -> oip.ModelInferRequest:
    message = oip.ModelInferRequest(model_name="m")
    arrays = {"number": np.array([number]), "x": np.zeros((1, 2), np.float32), "when": np.zeros(1, "M8[us]")}
    encode_inputs(message, arrays)
    return message


async def test_a_batch_links_to_all_its_requests_however_many() -> None:
    telemetry = Telemetry.recording("inference")
    model = Rowwise(NUMBERS, bounded=False)
    model.gate.clear()
    async with served(model, NUMBERS, telemetry) as servicer:
        first = asyncio.create_task(handled(servicer, gate_keeper(NUMBERS)))
        await asyncio.to_thread(model.at_the_gate.wait)
        spans = [_span(number, sampled=number % 2 == 0) for number in range(600)]
        tasks = [asyncio.create_task(_traced(servicer, _numbered(n), span)) for n, span in enumerate(spans)]
        await asyncio.sleep(0)
        model.gate.set()
        await first
        answers = await asyncio.gather(*tasks)
    (batch,) = telemetry.spans  # the first request was not traced, so neither was its batch
    assert batch.name == "treadle.batch"
    assert [link.context.span_id for link in batch.links] == [number + 1 for number in range(0, 600, 2)]
    assert batch.parent is not None
    assert batch.parent.span_id == 1
    attributes = dict(batch.attributes or {})
    assert (attributes["treadle.batch.id"], attributes["treadle.batch.size"]) == (2, 600)
    queue_ms = attributes["treadle.batch.queue_ms"]
    assert isinstance(queue_ms, float)
    for number, answer in enumerate(answers):
        if number % 2:
            assert not answer.parameters
        else:
            assert answer.parameters[BATCH_ID].int64_param == 2
            assert answer.parameters[BATCH_SIZE].int64_param == 600
            assert 0 < answer.parameters[QUEUE_MS].double_param <= queue_ms


@pytest.mark.parametrize("signature", [NUMBERS, EVERYTHING], ids=["numbers", "everything"])
async def test_a_request_that_is_not_traced_gets_no_batch_parameters(signature: Any) -> None:
    telemetry = Telemetry.recording("inference")
    async with served(Rowwise(signature, bounded=True), signature, telemetry) as servicer:
        for span in (trace.INVALID_SPAN, _span(1, sampled=False)):
            answer = await _traced(servicer, gate_keeper(signature), span)
            assert not answer.parameters
    assert not telemetry.spans


async def test_the_span_of_a_request_names_its_batch() -> None:
    telemetry = Telemetry.recording("inference")
    async with served(Rowwise(NUMBERS, bounded=True), NUMBERS, telemetry) as servicer:
        with telemetry.tracer.start_as_current_span("request"):
            await handled(servicer, _numbered(1))
    batch, request = telemetry.spans
    attributes = dict(request.attributes or {})
    assert attributes["treadle.batch.id"] == (batch.attributes or {})["treadle.batch.id"]
    assert (attributes["treadle.model"], attributes["treadle.version"], attributes["treadle.rows"]) == ("m", 1, 1)


async def test_a_batch_that_fails_says_so_without_the_text_of_the_error() -> None:
    telemetry = Telemetry.recording("inference")
    async with served(Rowwise(NUMBERS, bounded=True), NUMBERS, telemetry) as servicer:
        await _traced(servicer, _numbered(-1), _span(1))
    (batch,) = telemetry.spans
    assert (batch.attributes or {})["error.type"] == "BackendFault"
    assert "17.25" not in str(batch.to_json())
