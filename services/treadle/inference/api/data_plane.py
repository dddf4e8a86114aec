"""One ModelInfer, for the unary call and the stream: admit, decode, batch, encode.

The cheap steps come first: an overloaded model refuses a request before its tensors are decoded.
"""

import time
from dataclasses import dataclass

from opentelemetry import trace
from opentelemetry.trace import SpanContext

from treadle import oip
from treadle.core.errors import DeadlineExceeded, InvalidInput, TreadleError, Violation
from treadle.core.numbers import whole_number
from treadle.inference.api.infer_codec import reject_unknown_parameters
from treadle.inference.batching.batch import InferenceResult
from treadle.inference.models.entry import ServedModel
from treadle.inference.models.repository import Repository
from treadle.rpc import context as call_context
from treadle.rpc import tracing

# Parameters that are supported, or that have no effect on the response here.
_REQUEST_PARAMETERS = frozenset({"timeout", "binary_data_output", "headers", "triton_enable_empty_final_response"})
BATCH_ID, BATCH_SIZE, QUEUE_MS = "treadle_batch_id", "treadle_batch_size", "treadle_queue_ms"
"""Response parameters of a traced request: id and rows of its batch, and its queue time in milliseconds."""


@dataclass(frozen=True, slots=True)
class DataPlane:
    """Runs requests on the models of `repository`."""

    repository: Repository
    max_request_rows: int

    async def infer(self, request: oip.ModelInferRequest) -> oip.ModelInferResponse:
        """The response, with raw contents if the request had raw contents."""
        served = self.repository.served_model(request.model_name, request.model_version)
        began = time.monotonic()
        try:
            return await self._infer_admitted(served, request)
        except TreadleError as error:
            served.observer.request_failed(error.code.name, time.monotonic() - began)
            raise
        except BaseException:
            served.observer.request_failed("CANCELLED", time.monotonic() - began)
            raise

    async def _infer_admitted(self, served: ServedModel, request: oip.ModelInferRequest) -> oip.ModelInferResponse:
        codec, batcher = served.codec, served.batcher
        deadline = call_context.current().deadline
        if request.parameters:
            reject_unknown_parameters(request.parameters, _REQUEST_PARAMETERS, "the request")
            deadline = _earlier_deadline(deadline, request)
        batcher.admit(deadline)
        selection = codec.select_outputs(request.outputs)
        span_context = _sampled_span_context()
        cached = codec.match_cached_header(request)
        if cached is not None and codec.layout is not None:
            raws, rows = cached
            result = await batcher.result(batcher.enqueue(raws, rows, codec.layout, deadline, span_context))
            response = codec.encode_response(result, selection, raw=True)
        else:
            self._check_rows(request)
            inputs, rows = codec.decode_request(request)
            result = await batcher.submit(inputs, rows, deadline=deadline, context=span_context)
            response = codec.encode_response(result, selection, raw=bool(request.raw_input_contents))
        if request.id:
            response.id = request.id
        if span_context is not None:
            _annotate_batch(served, result, response)
        return response

    def _check_rows(self, request: oip.ModelInferRequest) -> None:
        """Raises InvalidInput for too many rows, by the shapes alone, before tensors are decoded."""
        for pb in request.inputs:
            if pb.shape and pb.shape[0] > self.max_request_rows:
                raise InvalidInput(
                    f"inputs[{pb.name}] has {pb.shape[0]} rows; {self.max_request_rows} is the limit of one request, "
                    "send several",
                    [Violation(f"inputs[{pb.name}]", "too many rows")],
                )


def _sampled_span_context() -> SpanContext | None:
    """The context of the current span if the SDK or the host samples it, else None."""
    span = trace.get_current_span()
    if span is trace.INVALID_SPAN:
        return None
    context = span.get_span_context()
    return context if context.trace_flags.sampled else None


def _annotate_batch(served: ServedModel, result: InferenceResult, response: oip.ModelInferResponse) -> None:
    """Adds batch id, batch size and queue time to the request's span and to the response."""
    batch, queue_ms, key = result.batch, result.queue_seconds * 1e3, served.registered.key
    response.parameters[BATCH_ID].int64_param = batch.id
    response.parameters[BATCH_SIZE].int64_param = batch.rows
    response.parameters[QUEUE_MS].double_param = queue_ms
    tracing.annotate(
        {
            "treadle.model": key.model,
            "treadle.version": key.version,
            "treadle.rows": result.rows,
            "treadle.batch.id": batch.id,
            "treadle.batch.size": batch.rows,
            "treadle.batch.queue_ms": queue_ms,
        }
    )


def _earlier_deadline(deadline: float | None, request: oip.ModelInferRequest) -> float | None:
    """The earlier of `deadline` and the request parameter `timeout` (microseconds), on time.monotonic's clock."""
    if "timeout" not in request.parameters:
        return deadline
    parameter = request.parameters["timeout"]
    micros = parameter.uint64_param or parameter.int64_param or whole_number(parameter.string_param) or 0
    if micros <= 0:
        raise DeadlineExceeded("parameter timeout leaves no time; it is in microseconds")
    own = time.monotonic() + micros / 1e6
    return own if deadline is None else min(deadline, own)
