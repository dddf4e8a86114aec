"""One ModelInfer: admit, read, submit, answer. Shared by the unary call and the stream.

The order is that of cost: what is refused for want of room is refused before anything of it is decoded.
"""

import time
from dataclasses import dataclass

from opentelemetry import trace
from opentelemetry.trace import SpanContext

from treadle import oip
from treadle.core.errors import DeadlineExceeded, InvalidInput, TreadleError, Violation
from treadle.core.numbers import whole_number
from treadle.inference.api.infer_codec import refuse_unknown
from treadle.inference.batching.batch import Answer
from treadle.inference.models.entry import Served
from treadle.inference.models.repository import Repository
from treadle.rpc import context as call_context
from treadle.rpc import tracing

# Understood, or without meaning here and without effect on the answer.
_REQUEST_PARAMETERS = frozenset({"timeout", "binary_data_output", "headers", "triton_enable_empty_final_response"})
BATCH_ID, BATCH_SIZE, QUEUE_MS = "treadle_batch_id", "treadle_batch_size", "treadle_queue_ms"
"""Parameters of the answer to a request that is traced: which batch it ran in, of how many rows, after what wait."""


@dataclass(frozen=True, slots=True)
class Inferring:
    """Runs requests on the models of `repository`."""

    repository: Repository
    max_request_rows: int

    async def infer(self, request: oip.ModelInferRequest) -> oip.ModelInferResponse:
        """The answer, raw if the request was raw."""
        served = self.repository.serving(request.model_name, request.model_version)
        began = time.monotonic()
        try:
            return await self._answered(served, request)
        except TreadleError as error:
            served.observer.failed(error.code.name, time.monotonic() - began)
            raise
        except BaseException:
            served.observer.failed("CANCELLED", time.monotonic() - began)
            raise

    async def _answered(self, served: Served, request: oip.ModelInferRequest) -> oip.ModelInferResponse:
        wire, batcher = served.wire, served.batcher
        deadline = call_context.current().deadline
        if request.parameters:
            refuse_unknown(request.parameters, _REQUEST_PARAMETERS, "the request")
            deadline = _sooner(deadline, request)
        batcher.admit(deadline)
        selection = wire.selection(request.outputs)
        sampled = _sampled()
        known = wire.known(request)
        if known is not None and wire.layout is not None:
            raws, rows = known
            answer = await batcher.outcome(batcher.enqueue(raws, rows, wire.layout, deadline, sampled))
            response = wire.respond(answer, selection, raw=True)
        else:
            self._check_rows(request)
            inputs, rows = wire.read(request)
            answer = await batcher.submit(inputs, rows, deadline=deadline, context=sampled)
            response = wire.respond(answer, selection, raw=bool(request.raw_input_contents))
        if request.id:
            response.id = request.id
        if sampled is not None:
            _tell(served, answer, response)
        return response

    def _check_rows(self, request: oip.ModelInferRequest) -> None:
        """Before anything is decoded."""
        for pb in request.inputs:
            if pb.shape and pb.shape[0] > self.max_request_rows:
                raise InvalidInput(
                    f"inputs[{pb.name}] has {pb.shape[0]} rows; {self.max_request_rows} is the limit of one request, "
                    "send several",
                    [Violation(f"inputs[{pb.name}]", "too many rows")],
                )


def _sampled() -> SpanContext | None:
    """The present span, if anybody records it: the SDK here, or the host."""
    span = trace.get_current_span()
    if span is trace.INVALID_SPAN:
        return None
    context = span.get_span_context()
    return context if context.trace_flags.sampled else None


def _tell(served: Served, answer: Answer, response: oip.ModelInferResponse) -> None:
    """In which company a traced request was answered: to its span, and to its caller."""
    batch, queue_ms, key = answer.batch, answer.queue_seconds * 1e3, served.registered.key
    response.parameters[BATCH_ID].int64_param = batch.id
    response.parameters[BATCH_SIZE].int64_param = batch.rows
    response.parameters[QUEUE_MS].double_param = queue_ms
    tracing.annotate(
        {
            "treadle.model": key.model,
            "treadle.version": key.version,
            "treadle.rows": answer.rows,
            "treadle.batch.id": batch.id,
            "treadle.batch.size": batch.rows,
            "treadle.batch.queue_ms": queue_ms,
        }
    )


def _sooner(deadline: float | None, request: oip.ModelInferRequest) -> float | None:
    """The caller's deadline, or sooner if the parameter `timeout` (microseconds) says so. On time.monotonic's clock."""
    if "timeout" not in request.parameters:
        return deadline
    parameter = request.parameters["timeout"]
    micros = parameter.uint64_param or parameter.int64_param or whole_number(parameter.string_param) or 0
    if micros <= 0:
        raise DeadlineExceeded("parameter timeout leaves no time; it is in microseconds")
    own = time.monotonic() + micros / 1e6
    return own if deadline is None else min(deadline, own)
