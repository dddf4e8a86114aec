"""The Open Inference Protocol at the gateway. A model's name may be a deployment's: then its policy routes.

An inference on a deployment is a prediction like any other: admitted, routed, caught by the fallback chain, recorded.
Its answer keeps the requested name, says the version, and carries `treadle_*` parameters. A name that is no
deployment's is a model of the inference service, and the call is passed on as it is.
"""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, TypeVar

from treadle import oip
from treadle.core.errors import InvalidInput, TreadleError
from treadle.core.numbers import whole_number
from treadle.gateway.api.annotation import annotate
from treadle.gateway.api.grpc.oip_codec import decode_request, encode_response, encode_streamed
from treadle.gateway.api.grpc.passthrough import forwarded_metadata
from treadle.gateway.pipeline.pipeline import PredictionPipeline
from treadle.gateway.pipeline.stages.routing import parse_version, pinned
from treadle.gateway.policy.deployments import ServedDeployment
from treadle.oip.service import Context
from treadle.rpc.context import current
from treadle.rpc.server.streams import answered

_RequestT = TypeVar("_RequestT", bound=Any)
END_STREAM_ON_ERROR = "triton_grpc_error"


@dataclass(frozen=True)
class OipServicer(oip.GRPCInferenceServiceServicer):
    """Answers for deployments, forwards the rest through `inference`."""

    pipeline: PredictionPipeline
    inference: oip.GRPCInferenceServiceStub
    stream_in_flight: int

    async def ServerLive(self, request: oip.ServerLiveRequest, context: Context) -> oip.ServerLiveResponse:
        return oip.ServerLiveResponse(live=True)

    async def ServerReady(self, request: oip.ServerReadyRequest, context: Context) -> oip.ServerReadyResponse:
        return await self.inference.ServerReady(request)

    async def ServerMetadata(self, request: oip.ServerMetadataRequest, context: Context) -> oip.ServerMetadataResponse:
        return await self.inference.ServerMetadata(request)

    async def ModelReady(self, request: oip.ModelReadyRequest, context: Context) -> oip.ModelReadyResponse:
        return await self.model_ready(request)

    async def ModelMetadata(self, request: oip.ModelMetadataRequest, context: Context) -> oip.ModelMetadataResponse:
        return await self.model_metadata(request)

    async def model_ready(self, request: oip.ModelReadyRequest) -> oip.ModelReadyResponse:
        """Of the deployment's primary version, if the name is a deployment's."""
        return await self.inference.ModelReady(self._primary(request))

    async def model_metadata(self, request: oip.ModelMetadataRequest) -> oip.ModelMetadataResponse:
        """Of the deployment's primary version under the deployment's name, if it is one."""
        name = request.name
        deployment = self._deployment(name)
        response = await self.inference.ModelMetadata(self._primary(request))
        if deployment is not None:
            response.name = name
            del response.versions[:]
            versions = [ref.version for ref in deployment.refs if ref.model == deployment.primary.model]
            response.versions.extend(str(version) for version in sorted(versions))
        return response

    async def ModelConfig(self, request: oip.ModelConfigRequest, context: Context) -> oip.ModelConfigResponse:
        name = request.name
        response = await self.inference.ModelConfig(self._primary(request))
        if self._deployment(name) is not None:
            response.config.name = name
        return response

    async def ModelStatistics(
        self, request: oip.ModelStatisticsRequest, context: Context
    ) -> oip.ModelStatisticsResponse:
        name = request.name
        response = await self.inference.ModelStatistics(self._primary(request))
        if self._deployment(name) is not None:
            for statistics in response.model_stats:
                statistics.name = name
        return response

    async def RepositoryIndex(
        self, request: oip.RepositoryIndexRequest, context: Context
    ) -> oip.RepositoryIndexResponse:
        return await self.inference.RepositoryIndex(request)

    async def RepositoryModelLoad(
        self, request: oip.RepositoryModelLoadRequest, context: Context
    ) -> oip.RepositoryModelLoadResponse:
        return await self.inference.RepositoryModelLoad(request)

    async def RepositoryModelUnload(
        self, request: oip.RepositoryModelUnloadRequest, context: Context
    ) -> oip.RepositoryModelUnloadResponse:
        return await self.inference.RepositoryModelUnload(request)

    async def ModelInfer(  # type: ignore[override]  # bytes are the serialised response
        self, request: oip.ModelInferRequest, context: Context
    ) -> bytes:
        return await self.infer(request)

    async def ModelStreamInfer(  # type: ignore[override]  # as above
        self, request_iterator: AsyncIterator[oip.ModelInferRequest], context: Context
    ) -> AsyncIterator[bytes]:
        """Answers in the order of the requests."""
        ends = current().metadata.get(END_STREAM_ON_ERROR) == "true"

        async def answer(request: oip.ModelInferRequest) -> bytes:
            try:
                return encode_streamed(await self.infer(request))
            except TreadleError as error:
                if ends:
                    raise
                failed = oip.ModelInferResponse(
                    model_name=request.model_name, model_version=request.model_version, id=request.id
                )
                response = oip.ModelStreamInferResponse(error_message=error.message, infer_response=failed)
                return response.SerializeToString()

        async for response in answered(request_iterator, answer, self.stream_in_flight, in_order=True):
            yield response

    async def infer(self, request: oip.ModelInferRequest) -> bytes:
        """The `ModelInferResponse`, serialised: by the deployment's policy if the name is a deployment's, else from the
        model of the inference service."""
        deployment = self._deployment(request.model_name)
        if deployment is None:
            response = await self.inference.ModelInfer(request, metadata=forwarded_metadata())
            return response.SerializeToString()
        version = _version(request.model_version) if request.model_version else parse_version(current().metadata)
        prediction = await self.pipeline.predict(decode_request(request, deployment, version))
        annotate(deployment.name, prediction)
        return encode_response(prediction, request)

    def _deployment(self, name: str) -> ServedDeployment | None:
        return self.pipeline.policies.deployments.get(name)

    def _primary(self, request: _RequestT) -> _RequestT:
        """The same request about the version that a deployment's name stands for."""
        deployment = self._deployment(request.name)
        if deployment is not None:
            ref = deployment.primary
            if request.version:
                ref = pinned(deployment, _version(request.version))
            request.name, request.version = ref.model, str(ref.version)
        return request


def _version(text: str) -> int:
    version = whole_number(text)
    if version is None:
        raise InvalidInput.at("model_version", "must be a version number such as 3")
    return version
