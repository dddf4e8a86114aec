"""`PredictionService`: decode, call the chain, encode."""

from collections.abc import AsyncIterator
from typing import Any, TypeAlias

import grpc.aio

from treadle.core.errors import InvalidInput, TreadleError
from treadle.gateway.api.grpc.prediction_codec import answer_to_proto, ask_from_proto
from treadle.gateway.pipeline.chain import Chain
from treadle.gateway.pipeline.request import Answer
from treadle.gateway.pipeline.together import Together
from treadle.rpc import tracing
from treadle.rpc.context import current
from treadle.rpc.server.streams import answered
from treadle.v1 import prediction_pb2, prediction_pb2_grpc

# Generic in the type stubs alone.
Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


class PredictionServicer(prediction_pb2_grpc.PredictionServiceServicer):
    """Answers over gRPC."""

    def __init__(self, chain: Chain, together: Together | None, stream_in_flight: int) -> None:
        """`together` answers the plain requests; None: each is answered alone."""
        self._chain = chain
        self._together = together
        self._stream_in_flight = stream_in_flight

    async def Predict(self, request: prediction_pb2.PredictRequest, context: Context) -> prediction_pb2.PredictResponse:
        """See the proto."""
        return await self._predict(request)

    async def PredictStream(
        self, request_iterator: AsyncIterator[prediction_pb2.PredictRequest], context: Context
    ) -> AsyncIterator[prediction_pb2.PredictStreamResponse]:
        """See the proto. Reads no further while `stream_in_flight` requests are unanswered."""
        waiting: set[str] = set()

        async def answer(request: prediction_pb2.PredictRequest) -> prediction_pb2.PredictStreamResponse:
            return await self._answer_one(request, waiting)

        async for response in answered(request_iterator, answer, self._stream_in_flight):
            yield response

    async def _answer_one(
        self, request: prediction_pb2.PredictRequest, waiting: set[str]
    ) -> prediction_pb2.PredictStreamResponse:
        request_id = request.request_id
        response = prediction_pb2.PredictStreamResponse(request_id=request_id)
        taken = request_id in waiting
        try:
            _check_id(request_id, taken)
            waiting.add(request_id)
            response.response.CopyFrom(await self._predict(request))
        except TreadleError as error:
            response.error.CopyFrom(error.to_status())
        finally:
            if not taken:
                waiting.discard(request_id)
        return response

    async def _predict(self, request: prediction_pb2.PredictRequest) -> prediction_pb2.PredictResponse:
        call = current()
        tried = await self._together.predict(request, call) if self._together else None
        if isinstance(tried, prediction_pb2.PredictResponse):
            return tried
        ask = ask_from_proto(request, call.metadata)
        answer = await self._chain.predict(ask, tried)
        annotate(ask.deployment, answer)
        return answer_to_proto(answer, ask, call.trace_id)


def annotate(deployment: str, answer: Answer) -> None:
    """Says on the span of the present call what happened."""
    if not tracing.is_recording():
        return
    said: dict[str, str | int] = {
        "treadle.deployment": deployment,
        "treadle.model": answer.ref.model,
        "treadle.version": answer.ref.version,
        "treadle.rows": len(answer.prediction_ids),
        "treadle.served_by": answer.served_by,
    }
    if answer.degraded_reason:
        said["treadle.degraded_reason"] = answer.degraded_reason
    tracing.annotate(said)


def _check_id(request_id: str, taken: bool) -> None:
    if not request_id or taken:
        what = "is in flight on this stream already" if request_id else "is required on a stream"
        raise InvalidInput.at("request_id", what)
