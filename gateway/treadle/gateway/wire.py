"""`treadle.v1` messages of a prediction to and from what the core works on."""

from collections.abc import Mapping

from treadle.gateway import row_messages
from treadle.gateway.asking import Answer, Ask
from treadle.gateway.routing import parse_pin
from treadle.rpc.columns import decode_all, encode_all
from treadle.v1 import prediction_pb2, types_pb2


def ask_from_proto(pb: prediction_pb2.PredictRequest, metadata: Mapping[str, str]) -> Ask:
    """Raises InvalidInput for columns that can't be read and a malformed pin."""
    return Ask(
        deployment=pb.deployment,
        entities=decode_all(pb.entities, "entities"),
        context=decode_all(pb.context, "context"),
        tensors=decode_all(pb.tensors, "tensors"),
        outputs=tuple(pb.outputs),
        request_id=pb.request_id,
        sticky_key=pb.sticky_key,
        return_features=pb.return_features,
        pin=parse_pin(metadata),
        now_micros=pb.now_micros,
    )


def answer_to_proto(answer: Answer, ask: Ask, trace_id: str) -> prediction_pb2.PredictResponse:
    """Features without their values unless the request asked for them."""
    response = prediction_pb2.PredictResponse(
        request_id=ask.request_id,
        outputs=encode_all(answer.outputs),
        model=types_pb2.ModelRef(model=answer.ref.model, version=answer.ref.version),
        prediction_ids=answer.prediction_ids,
        served_by=answer.served_by,
        degraded_reason=answer.degraded_reason,
        trace_id=trace_id,
    )
    features = answer.features
    if features.is_one_row and not ask.return_features:
        response.MergeFromString(row_messages.bare(features.batch, _FEATURES)[features.start])
    else:
        shown = [row_messages.to_message(each, values=ask.return_features) for each in features.values()]
        response.features.extend(shown)
    return response


_FEATURES = prediction_pb2.PredictResponse.FEATURES_FIELD_NUMBER
