"""`PredictionService`: decode, ask the pipeline, encode."""

from collections.abc import AsyncIterator
from typing import Any, TypeAlias

import grpc.aio

from treadle.core.errors import InvalidInput, TreadleError
from treadle.gateway.api.annotation import annotate
from treadle.gateway.api.grpc.prediction_codec import decode_request, encode_response
from treadle.gateway.pipeline.pipeline import PredictionPipeline
from treadle.rpc.codec.protobuf_wire import field
from treadle.rpc.context import current
from treadle.rpc.server.streams import answered
from treadle.v1 import prediction_pb2, prediction_pb2_grpc

# Generic in the type stubs alone.
Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"

_REQUEST_ID = prediction_pb2.PredictStreamResponse.REQUEST_ID_FIELD_NUMBER
_RESPONSE = prediction_pb2.PredictStreamResponse.RESPONSE_FIELD_NUMBER
_ERROR = prediction_pb2.PredictStreamResponse.ERROR_FIELD_NUMBER


class PredictionServicer(prediction_pb2_grpc.PredictionServiceServicer):
    """Answers over gRPC. Responses leave as bytes: the host would serialise a message once more."""

    def __init__(self, pipeline: PredictionPipeline, stream_in_flight: int) -> None:
        self._pipeline = pipeline
        self._stream_in_flight = stream_in_flight

    async def Predict(  # type: ignore[override]  # bytes are the serialised response
        self, request: prediction_pb2.PredictRequest, context: Context
    ) -> bytes:
        """See the proto."""
        return await self._predict(request)

    async def PredictStream(  # type: ignore[override]  # as above
        self, request_iterator: AsyncIterator[prediction_pb2.PredictRequest], context: Context
    ) -> AsyncIterator[bytes]:
        """See the proto. Reads no further while `stream_in_flight` requests are unanswered."""
        in_flight: set[str] = set()

        async def answer(request: prediction_pb2.PredictRequest) -> bytes:
            return await self._answer_one(request, in_flight)

        async for response in answered(request_iterator, answer, self._stream_in_flight):
            yield response

    async def _answer_one(self, request: prediction_pb2.PredictRequest, in_flight: set[str]) -> bytes:
        request_id = request.request_id
        taken = request_id in in_flight
        try:
            _check_id(request_id, taken)
            in_flight.add(request_id)
            result = field(_RESPONSE, await self._predict(request))
        except TreadleError as error:
            result = field(_ERROR, error.to_status().SerializeToString())
        finally:
            if not taken:
                in_flight.discard(request_id)
        return field(_REQUEST_ID, request_id.encode()) + result

    async def _predict(self, pb: prediction_pb2.PredictRequest) -> bytes:
        context = current()
        request = decode_request(pb, context.metadata)
        prediction = await self._pipeline.predict(request)
        annotate(request.deployment, prediction)
        return encode_response(prediction, request, context.trace_id)


def _check_id(request_id: str, taken: bool) -> None:
    if not request_id or taken:
        what = "is in flight on this stream already" if request_id else "is required on a stream"
        raise InvalidInput.at("request_id", what)
