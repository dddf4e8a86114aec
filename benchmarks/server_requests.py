"""Requests to servers: the bytes of a request, and the check of its answer.

A `ServerRequest` is sent unchanged by h2load (`load`), by grpcio or by a plain keep-alive connection (`clients`).
"""

import json
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from benchmarks.models import CHAIN, FEATURE_SERVICE, INPUT, VIEW, Array, Model, chain_columns
from treadle import client, oip
from treadle.client.tables import from_columns, to_columns
from treadle.rpc.codec.tensors import decode_outputs, encode_inputs
from treadle.v1 import features_pb2, prediction_pb2

INFER = "/inference.GRPCInferenceService/ModelInfer"
PREDICT = "/treadle.v1.PredictionService/Predict"
LOOKUP = "/treadle.v1.FeatureService/GetOnlineFeatures"
GRPC_HEADERS = {"content-type": "application/grpc", "te": "trailers"}
JSON_HEADERS = {"content-type": "application/json"}
_FRAME = struct.Struct(">BI")
# The tolerance of compiled models is tighter; this one only has to detect wrong answers.
_TOLERANCE = 1e-3


class WrongAnswerError(Exception):
    """A server returned another prediction than the model itself."""


@dataclass(frozen=True)
class ServerRequest:
    """One request to one address."""

    address: str
    """host:port"""
    path: str
    body: bytes
    """A serialized message without the gRPC frame, or JSON."""
    check: Callable[[bytes], None]
    """Raises WrongAnswerError unless the bytes are the right answer."""
    grpc: bool = True
    rows: int = 1
    """Predictions in one answer."""
    answer_bytes: int = 0
    """Data bytes of a complete answer on the wire; 0 until one was received."""
    headers: Mapping[str, str] = field(default_factory=lambda: GRPC_HEADERS)

    @property
    def wire_body(self) -> bytes:
        """The body that h2load sends: with gRPC, a frame of five bytes precedes the message."""
        return _FRAME.pack(0, len(self.body)) + self.body if self.grpc else self.body

    def with_answer_size(self, answer: bytes) -> "ServerRequest":
        """The request with the size of this complete answer."""
        return replace(self, answer_bytes=len(answer) + (_FRAME.size if self.grpc else 0))


def infer(address: str, model: Model, rows: int) -> ServerRequest:
    """ModelInfer of the Open Inference Protocol, raw tensors; for Treadle, MLServer, Triton, Ray, grpc.aio."""
    return _infer(address, model.name, model.rows[:rows], {name: each[:rows] for name, each in model.expected.items()})


def infer_constant(address: str, model: Model, probability: Sequence[float]) -> ServerRequest:
    """ModelInfer of a server whose answer is constant."""
    return _infer(address, model.name, model.rows[:1], {"probability": np.array(probability), "label": np.array([1])})


def infer_chain(address: str, expected: Mapping[str, Array]) -> ServerRequest:
    """ModelInfer of the chain's model, with its 11 features in the request."""
    return _infer(address, CHAIN, expected["rows"][:1], _first(expected, 1))


def predict_by_key(address: str, expected: Mapping[str, Array]) -> ServerRequest:
    """Predict of the chain's deployment by entity key: the gateway looks the features up."""
    request = client.StreamRequest(CHAIN, {"patient": np.array([0])}).to_proto()

    def check(answer: bytes) -> None:
        response = prediction_pb2.PredictResponse.FromString(answer)
        if response.degraded_reason:
            raise WrongAnswerError(f"degraded: {response.degraded_reason}")
        require_answers(from_columns(response.outputs), _first(expected, 1))

    return ServerRequest(address, PREDICT, request.SerializeToString(), check)


def lookup(address: str, expected: Mapping[str, Array], rows: int) -> ServerRequest:
    """GetOnlineFeatures of 11 features for `rows` entities."""
    request = features_pb2.GetOnlineFeaturesRequest(
        feature_service=FEATURE_SERVICE, entities=to_columns({"patient": np.arange(rows)})
    )
    wanted = {f"{VIEW}__{name}": expected["rows"][:rows, place] for place, name in enumerate(chain_columns())}

    def check(answer: bytes) -> None:
        response = features_pb2.GetOnlineFeaturesResponse.FromString(answer)
        require_answers(from_columns(feature.column for feature in response.features), wanted)

    return ServerRequest(address, LOOKUP, request.SerializeToString(), check, rows=rows)


def _infer(address: str, name: str, rows: Array, wanted: Mapping[str, Array]) -> ServerRequest:
    request = oip.ModelInferRequest(model_name=name)
    encode_inputs(request, {INPUT: rows})

    def check(answer: bytes) -> None:
        require_answers(decode_outputs(oip.ModelInferResponse.FromString(answer)), wanted)

    return ServerRequest(address, INFER, request.SerializeToString(), check, rows=len(rows))


def _first(expected: Mapping[str, Array], rows: int) -> dict[str, Array]:
    return {name: values[:rows] for name, values in expected.items() if name != "rows"}


def json_predict(address: str, model: Model, rows: int) -> ServerRequest:
    """POST /predict {"features": [[…]]}, answered by {"outputs": […]} or by the list itself."""
    body = json.dumps({"features": model.rows[:rows].tolist()}).encode()
    wanted = {output: values[:rows] for output, values in model.expected.items()}

    def check(answer: bytes) -> None:
        given = json.loads(answer)
        values = given["outputs"] if isinstance(given, dict) else given
        require_answers({"output": np.asarray(values)}, wanted)

    return ServerRequest(address, "/predict", body, check, grpc=False, rows=rows, headers=JSON_HEADERS)


def require_answers(given: Mapping[str, Array], wanted: Mapping[str, Array]) -> None:
    """Checks that each output equals the wanted one of its name; a peer's single output may have another name."""
    if not given:
        raise WrongAnswerError("the answer has no outputs")
    for name, values in given.items():
        right = wanted[name] if name in wanted else next(iter(wanted.values()))
        flat = np.asarray(values, dtype=np.float64).reshape(-1)
        expected = np.asarray(right, dtype=np.float64).reshape(-1)
        if flat.shape != expected.shape or not np.allclose(flat, expected, rtol=_TOLERANCE, atol=_TOLERANCE):
            raise WrongAnswerError(f"output {name!r} is not what the model itself answers")
