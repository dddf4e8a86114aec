"""`treadle.v1` messages of a prediction to and from what the core works on."""

from collections.abc import Mapping

from treadle.gateway.pipeline import row_messages
from treadle.gateway.pipeline.request import Answer, Ask
from treadle.gateway.pipeline.routing import parse_pin
from treadle.rpc.codec.columns import decode_all, encode_column
from treadle.rpc.codec.protobuf_wire import field
from treadle.v1 import types_pb2
from treadle.v1.prediction_pb2 import PredictRequest, PredictResponse


def ask_from_proto(pb: PredictRequest, metadata: Mapping[str, str]) -> Ask:
    """Raises InvalidInput for columns that can't be read and a malformed pin."""
    return Ask(
        deployment=pb.deployment,
        entities=decode_all(pb.entities, "entities") if pb.entities else {},
        context=decode_all(pb.context, "context") if pb.context else {},
        tensors=decode_all(pb.tensors, "tensors") if pb.tensors else {},
        outputs=tuple(pb.outputs),
        request_id=pb.request_id,
        sticky_key=pb.sticky_key,
        return_features=pb.return_features,
        pin=parse_pin(metadata),
        now_micros=pb.now_micros,
    )


def answer_to_proto(answer: Answer, ask: Ask, trace_id: str) -> PredictResponse:
    """Features without their values unless the request asked for them."""
    ref, features = answer.ref, answer.features
    response = PredictResponse(
        request_id=ask.request_id,
        model=types_pb2.ModelRef(model=ref.model, version=ref.version),
        prediction_ids=answer.prediction_ids,
        served_by=answer.served_by,
        degraded_reason=answer.degraded_reason,
        trace_id=trace_id,
    )
    columns = [field(PredictResponse.OUTPUTS_FIELD_NUMBER, encode_column(column)) for column in answer.outputs]
    if features.is_one_row and not ask.return_features:
        columns.append(row_messages.bare(features.batch, PredictResponse.FEATURES_FIELD_NUMBER)[features.start])
    else:
        shown = [row_messages.to_message(each, values=ask.return_features) for each in features.values()]
        response.features.extend(shown)
    response.MergeFromString(b"".join(columns))
    return response
