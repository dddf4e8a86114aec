"""Rows of several requests that were answered as one: what each caller gets of it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from treadle.core.model_ref import ModelRef
from treadle.gateway.pipeline import row_messages
from treadle.gateway.pipeline.chain import Outcome
from treadle.gateway.pipeline.request import Ask
from treadle.gateway.policy.deployments import Deployment
from treadle.rpc.codec.columns import encode_each_row
from treadle.rpc.codec.protobuf_wire import field
from treadle.v1 import types_pb2
from treadle.v1.prediction_pb2 import PredictResponse

SERVED_BY = "traffic"


@dataclass(frozen=True, slots=True)
class AnsweredRows:
    """N rows that one version answered, each for a request of its own."""

    deployment: Deployment
    ref: ModelRef
    ask: Ask
    outcome: Outcome
    prediction_ids: Sequence[str]
    trace_ids: Sequence[str]
    latencies: Sequence[float]
    """Seconds, of each row."""


def messages(answered: AnsweredRows, request_ids: Sequence[str]) -> Iterator[PredictResponse]:
    """The answer to each request: as `answer_to_proto` would make it of its row."""
    outcome, ref = answered.outcome, answered.ref
    common = PredictResponse(
        model=types_pb2.ModelRef(model=ref.model, version=ref.version),
        served_by=SERVED_BY,
        degraded_reason=outcome.degraded,
    ).SerializeToString()
    parts = [encode_each_row(column) for column in outcome.outputs]
    outputs = [[field(PredictResponse.OUTPUTS_FIELD_NUMBER, row) for row in rows] for rows in parts]
    features = outcome.features
    shown = [b""] * answered.ask.rows
    if features:
        shown = row_messages.bare(features.batch, PredictResponse.FEATURES_FIELD_NUMBER)[features.start : features.stop]
    for prediction_id, trace_id, request_id, *rest in zip(
        answered.prediction_ids, answered.trace_ids, request_ids, *outputs, shown, strict=True
    ):
        head = common + field(PredictResponse.PREDICTION_IDS_FIELD_NUMBER, prediction_id.encode())
        if trace_id:
            head += field(PredictResponse.TRACE_ID_FIELD_NUMBER, trace_id.encode())
        if request_id:
            head += field(PredictResponse.REQUEST_ID_FIELD_NUMBER, request_id.encode())
        yield PredictResponse.FromString(head + b"".join(rest))
