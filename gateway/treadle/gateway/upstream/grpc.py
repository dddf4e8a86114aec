"""The clients of the feature service and of the inference service over gRPC."""

from collections.abc import Sequence

import numpy as np

from treadle import oip
from treadle.core.column import Column
from treadle.core.errors import Internal, InvalidInput
from treadle.core.model_ref import ModelRef
from treadle.gateway.pipeline.batch.feature_batch import FeatureBatch, FeatureValues
from treadle.gateway.pipeline.batch.request_batch import Tensors
from treadle.rpc.codec.columns import decode, encode_all
from treadle.rpc.codec.tensors import decode_outputs, encode_inputs
from treadle.v1 import features_pb2, features_pb2_grpc, types_pb2


class GrpcFeatureClient:
    """`FeatureClient` through the feature service."""

    def __init__(self, stub: "features_pb2_grpc.FeatureServiceAsyncStub") -> None:
        self._stub = stub

    async def look_up(
        self, service: str, entities: Sequence[Column], context: Sequence[Column], now_micros: int, timeout: float
    ) -> FeatureBatch:
        """See `FeatureClient`."""
        request = features_pb2.GetOnlineFeaturesRequest(
            feature_service=service,
            entities=encode_all(entities),
            context=encode_all(context),
            now_micros=now_micros,
        )
        response = await self._stub.GetOnlineFeatures(request, timeout=timeout)
        rows = next((column.rows for column in (*entities, *context)), 0)
        try:
            features = {pb.column.name: _feature(pb, rows) for pb in response.features}
        except InvalidInput as error:  # the answer's fault, not the caller's
            raise Internal(f"the answer of the feature service cannot be read: {error.message}") from error
        return FeatureBatch(features, rows)


def _feature(pb: types_pb2.FeatureColumn, rows: int) -> FeatureValues:
    column = decode(pb.column, "features")
    statuses = np.fromiter(pb.statuses, dtype=np.uint8, count=len(pb.statuses))
    ages = np.fromiter(pb.ages_seconds, dtype=np.float64, count=len(pb.ages_seconds))
    if not len(statuses) == len(ages) == column.rows == rows:
        raise InvalidInput(f"features[{column.name}] has values, statuses or ages for another number of rows")
    return FeatureValues(column, statuses, ages)


class GrpcInferenceClient:
    """`InferenceClient` through the inference service."""

    def __init__(self, stub: oip.GRPCInferenceServiceStub) -> None:
        self._stub = stub

    async def infer(self, ref: ModelRef, inputs: Tensors, outputs: Sequence[str], timeout: float) -> Tensors:
        """See `InferenceClient`. Tensors travel raw."""
        request = oip.ModelInferRequest(model_name=ref.model, model_version=str(ref.version))
        encode_inputs(request, inputs)
        for name in outputs:
            request.outputs.add(name=name)
        response = await self._stub.ModelInfer(request, timeout=timeout)
        try:
            return decode_outputs(response)
        except InvalidInput as error:
            raise Internal(f"the answer of the inference service cannot be read: {error.message}") from error
