"""Predictions by entity keys or by tensors, single or as a stream."""

from collections.abc import AsyncIterable, AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property

import numpy as np

from treadle.client.connection import Connection
from treadle.client.tables import Array, Feature, Table, from_columns, to_columns, to_feature, to_optional_micros
from treadle.core.dtypes import dtype_name
from treadle.core.errors import TreadleError, from_status
from treadle.rpc.client.stream_status import RequestStream
from treadle.rpc.context import VERSION_HEADER
from treadle.v1 import prediction_pb2, prediction_pb2_grpc


@dataclass(frozen=True)
class FeatureProvenance:
    """How good the features behind an answer were; a name stands in a list when it is so in any of the rows."""

    oldest_age_seconds: float
    """Age of the oldest feature value; NaN where no feature has a value."""
    stale: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    null: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Prediction:
    """The answer to one request of N rows."""

    outputs: Mapping[str, Array]
    """Arrays by output name; the first axis of each is the N rows."""
    model: str
    """The model that answered."""
    version: int
    """0 for a default answer."""
    prediction_ids: tuple[str, ...]
    """N ids, by which labels are joined."""
    served_by: str
    """ "traffic", "pinned" or "fallback:NAME"."""
    degraded_reason: str = ""
    """Why the answer is degraded; empty if it is not."""
    provenance: FeatureProvenance | None = None
    """The features that were looked up, in short; None where nothing was."""
    features: Mapping[str, Feature] = field(default_factory=dict)
    """Every feature that was looked up, where `return_features` asked for it."""
    trace_id: str = ""
    """W3C trace id; `treadle trace ID` shows the trace."""
    request_id: str = ""

    @property
    def degraded(self) -> bool:
        """Whether the answer is degraded: by a fallback, or by stale or missing features."""
        return bool(self.degraded_reason)

    def __len__(self) -> int:
        return len(self.prediction_ids)

    def __getitem__(self, output: str) -> Array:
        return self.outputs[output]

    def __repr__(self) -> str:
        by = f"{self.model}/{self.version}" if self.version else "a default answer"
        degraded = f", degraded: {self.degraded_reason}" if self.degraded else ""
        rows = "1 row" if len(self) == 1 else f"{len(self)} rows"
        lines = [f"<Prediction of {rows} by {by} ({self.served_by}{degraded})"]
        for name, values in self.outputs.items():
            shown = np.array2string(values, precision=4, threshold=6, edgeitems=2, separator=", ").replace("\n", "")
            kind = dtype_name(values.dtype) if values.dtype != object else "STRING"
            lines.append(f"  {name}: {kind} {list(values.shape)} {shown}")
        return "\n".join(lines) + ">"


@dataclass(frozen=True)
class StreamRequest:
    """One request of a stream: by entities and context, or by tensors."""

    deployment: str
    entities: Table | None = None
    context: Table | None = None
    tensors: Table | None = None
    outputs: Sequence[str] = ()
    return_features: bool = False
    sticky_key: str = ""
    request_id: str = ""
    """Returned with the result; empty: the position in the stream."""
    now: datetime | np.datetime64 | None = None
    """The time of the request, from which feature ages are counted; for replays of the past."""

    def to_proto(self, request_id: str = "") -> prediction_pb2.PredictRequest:
        """The message of the request; `request_id` is used if it has none of its own."""
        return prediction_pb2.PredictRequest(
            deployment=self.deployment,
            request_id=self.request_id or request_id,
            entities=to_columns(self.entities),
            context=to_columns(self.context),
            tensors=to_columns(self.tensors),
            outputs=self.outputs,
            return_features=self.return_features,
            sticky_key=self.sticky_key,
            now_micros=to_optional_micros(self.now),
        )


@dataclass(frozen=True)
class StreamResult:
    """The result of one `StreamRequest`: a prediction or an error, never both."""

    request_id: str
    prediction: Prediction | None = None
    error: TreadleError | None = None

    def result(self) -> Prediction:
        """The prediction; raises the error if the request failed."""
        if self.prediction is None:
            raise self.error or RuntimeError("an answer without prediction and without error")
        return self.prediction


class Predictions(Connection):
    """The prediction methods of a client."""

    @cached_property
    def _prediction(self) -> "prediction_pb2_grpc.PredictionServiceAsyncStub":
        return prediction_pb2_grpc.PredictionServiceStub(self.channel)

    async def predict(
        self,
        deployment: str,
        entities: Table | None = None,
        context: Table | None = None,
        *,
        outputs: Sequence[str] | None = None,
        return_features: bool = False,
        sticky_key: str = "",
        pin_version: int | None = None,
        now: datetime | np.datetime64 | None = None,
        timeout_seconds: float | None = None,
    ) -> Prediction:
        """Predicts N rows by entity key: `predict("flight-delay", {"tail_number": ["N14228"]}, {"distance": [1400]})`.

        `context` holds request-time columns. `pin_version` selects one version of the deployment. `now` is the time of
        the request, from which feature ages are counted; for replays of the past.
        """
        request = StreamRequest(
            deployment, entities, context, None, outputs or (), return_features, sticky_key, now=now
        )
        return await self._predict(request, pin_version, timeout_seconds)

    async def predict_tensors(
        self,
        deployment: str,
        tensors: Table,
        *,
        outputs: Sequence[str] | None = None,
        sticky_key: str = "",
        pin_version: int | None = None,
        timeout_seconds: float | None = None,
    ) -> Prediction:
        """Predicts N rows from the model's own inputs, by tensor name; the first axis of each is the rows."""
        request = StreamRequest(deployment, tensors=tensors, outputs=outputs or (), sticky_key=sticky_key)
        return await self._predict(request, pin_version, timeout_seconds)

    async def predict_stream(
        self, requests: Iterable[StreamRequest] | AsyncIterable[StreamRequest]
    ) -> AsyncIterator[StreamResult]:
        """Sends many requests over one stream and yields answers as they complete, matched by `request_id`.

        A request that fails yields its error; the other requests continue.
        """
        async for response in self._prediction.PredictStream(_encode_requests(requests)):
            if response.WhichOneof("result") == "error":
                yield StreamResult(response.request_id, error=from_status(response.error))
            else:
                yield StreamResult(response.request_id, prediction=_prediction(response.response))

    async def _predict(
        self, request: StreamRequest, pin_version: int | None, timeout_seconds: float | None
    ) -> Prediction:
        metadata = () if pin_version is None else ((VERSION_HEADER, str(pin_version)),)
        response = await self._prediction.Predict(request.to_proto(), timeout=timeout_seconds, metadata=metadata)
        return _prediction(response)


def _prediction(pb: prediction_pb2.PredictResponse) -> Prediction:
    return Prediction(
        outputs=from_columns(pb.outputs),
        model=pb.model.model,
        version=pb.model.version,
        prediction_ids=tuple(pb.prediction_ids),
        served_by=pb.served_by,
        degraded_reason=pb.degraded_reason,
        provenance=_provenance(pb.provenance) if pb.HasField("provenance") else None,
        features={feature.column.name: to_feature(feature) for feature in pb.features},
        trace_id=pb.trace_id,
        request_id=pb.request_id,
    )


def _provenance(pb: prediction_pb2.FeatureProvenance) -> FeatureProvenance:
    return FeatureProvenance(pb.oldest_age_seconds, tuple(pb.stale), tuple(pb.missing), tuple(pb.null))


async def _encode_requests(
    requests: Iterable[StreamRequest] | AsyncIterable[StreamRequest],
) -> AsyncIterator[prediction_pb2.PredictRequest]:
    """The messages of the requests; a request without an id gets its position in the stream."""
    position = 0
    async for request in RequestStream(requests):
        yield request.to_proto(str(position))
        position += 1
