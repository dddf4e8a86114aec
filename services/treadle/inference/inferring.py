"""One ModelInfer: decode, check, submit, encode. Shared by the unary call and the stream."""

import time
from collections.abc import Mapping
from dataclasses import dataclass

from opentelemetry import trace

from treadle import oip
from treadle.inference.batch import Answer
from treadle.inference.repository import Repository, Served
from treadle.plugins.tensors import Array
from treadle.rpc import context as call_context
from treadle.rpc.errors import DeadlineExceeded, InvalidInput, TreadleError, Violation
from treadle.rpc.numbers import whole_number
from treadle.rpc.tensors import DTYPE_PARAMETER, decode_inputs, encode_outputs

# Understood, or without meaning here and without effect on the answer.
_REQUEST_PARAMETERS = frozenset({"timeout", "binary_data_output", "headers", "triton_enable_empty_final_response"})
_TENSOR_PARAMETERS = frozenset({"binary_data", "binary_data_size", "content_type", DTYPE_PARAMETER})


@dataclass(frozen=True, slots=True)
class Inferring:
    """Runs requests on the models of `repository`."""

    repository: Repository
    max_request_rows: int

    async def infer(self, request: oip.ModelInferRequest) -> oip.ModelInferResponse:
        """The answer, raw if the request was raw."""
        started = time.perf_counter()
        served = self.repository.serving(request.model_name, request.model_version)
        try:
            answer = await self._submit(served, request)
            encoding = time.perf_counter()
            response = self._respond(served, request, answer)
        except TreadleError as error:
            served.observer.failed(error.code.name, time.perf_counter() - started)
            raise
        except BaseException:
            served.observer.failed("CANCELLED", time.perf_counter() - started)
            raise
        ended = time.perf_counter()
        served.observer.answered(answer, ended - started, ended - encoding)
        return response

    async def _submit(self, served: Served, request: oip.ModelInferRequest) -> Answer:
        _check_parameters(request)
        for pb in request.inputs:  # before anything is decoded
            if pb.shape and pb.shape[0] > self.max_request_rows:
                raise InvalidInput(
                    f"inputs[{pb.name}] has {pb.shape[0]} rows; {self.max_request_rows} is the limit of one request, "
                    "send several",
                    [Violation(f"inputs[{pb.name}]", "too many rows")],
                )
        inputs = decode_inputs(request, served.restored)
        rows = served.registered.signature.check_inputs(inputs)
        _check_outputs(served, request)
        span = trace.get_current_span()
        answer = await served.batcher.submit(
            inputs, rows, deadline=_deadline(request), context=span.get_span_context() if span.is_recording() else None
        )
        if span.is_recording():
            key = served.registered.key
            span.set_attributes(
                {
                    "treadle.model": key.name,
                    "treadle.version": key.version,
                    "treadle.rows": rows,
                    "treadle.batch.id": answer.batch.id,
                    "treadle.batch.size": answer.batch.rows,
                    "treadle.batch.queue_ms": answer.queue_seconds * 1e3,
                }
            )
        return answer

    def _respond(self, served: Served, request: oip.ModelInferRequest, answer: Answer) -> oip.ModelInferResponse:
        key = served.registered.key
        response = oip.ModelInferResponse(model_name=key.name, model_version=str(key.version), id=request.id)
        encode_outputs(response, _chosen(request, answer.outputs), raw=bool(request.raw_input_contents))
        return response


def _chosen(request: oip.ModelInferRequest, outputs: Mapping[str, Array]) -> Mapping[str, Array]:
    return {output.name: outputs[output.name] for output in request.outputs} if request.outputs else outputs


def _check_outputs(served: Served, request: oip.ModelInferRequest) -> None:
    known = [spec.name for spec in served.registered.signature.outputs]
    seen: set[str] = set()
    for output in request.outputs:
        place = f"outputs[{output.name}]"
        if output.name not in known or output.name in seen:
            raise InvalidInput(
                f"{place} is asked for twice" if output.name in seen else f"{place} is unknown; the model has {known}",
                [Violation(place, "unknown or asked for twice")],
            )
        seen.add(output.name)
        refuse_unknown(output.parameters, _TENSOR_PARAMETERS, place)


def _check_parameters(request: oip.ModelInferRequest) -> None:
    refuse_unknown(request.parameters, _REQUEST_PARAMETERS, "the request")
    for pb in request.inputs:
        if pb.parameters:
            refuse_unknown(pb.parameters, _TENSOR_PARAMETERS, f"inputs[{pb.name}]")


def refuse_unknown(parameters: Mapping[str, object], known: frozenset[str], where: str) -> None:
    """InvalidInput for parameters that are not among `known`: what is not understood must not seem to be heeded."""
    unknown = sorted(parameters.keys() - known)
    if unknown:
        raise InvalidInput(
            f"{where} has parameters that mean nothing here: {', '.join(unknown)[:200]}; leave them out",
            [Violation(f"parameters.{name[:64]}", f"unknown; {where} may have {sorted(known)}") for name in unknown],
        )


def _deadline(request: oip.ModelInferRequest) -> float | None:
    """The caller's, or sooner if the parameter `timeout` (microseconds) says so. On time.monotonic's clock."""
    deadline = call_context.current().deadline
    if "timeout" not in request.parameters:
        return deadline
    parameter = request.parameters["timeout"]
    micros = parameter.uint64_param or parameter.int64_param or whole_number(parameter.string_param) or 0
    if micros <= 0:
        raise DeadlineExceeded("parameter timeout leaves no time; it is in microseconds")
    own = time.monotonic() + micros / 1e6
    return own if deadline is None else min(deadline, own)
