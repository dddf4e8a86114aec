"""The Open Inference Protocol at the gateway. A model's name may be a deployment's: then its policy routes.

An inference on a deployment is a prediction like any other: admitted, routed, caught by the fallback chain, recorded.
Its answer keeps the requested name, says the version, and carries `treadle_*` parameters. A name that is no
deployment's is a model of the inference service, and the call is passed on as it is.
"""

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from treadle import oip
from treadle.core.column import Column
from treadle.core.dtypes import dtype_name
from treadle.core.errors import InvalidInput, TreadleError
from treadle.core.numbers import whole_number
from treadle.gateway.api.grpc.passthrough import forwarded_metadata
from treadle.gateway.api.grpc.prediction_servicer import annotate
from treadle.gateway.pipeline.chain import Chain
from treadle.gateway.pipeline.request import Answer, Ask
from treadle.gateway.pipeline.routing import parse_pin, pinned
from treadle.gateway.policy.deployments import Deployment
from treadle.oip.service import Context
from treadle.rpc.codec.tensors import decode_inputs, encode_outputs
from treadle.rpc.context import current
from treadle.rpc.server.streams import answered

_RequestT = TypeVar("_RequestT", bound=Any)
END_STREAM_ON_ERROR = "triton_grpc_error"


@dataclass(frozen=True)
class OipServicer(oip.GRPCInferenceServiceServicer):
    """Answers for deployments, forwards the rest through `inference`."""

    chain: Chain
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

    async def ModelInfer(self, request: oip.ModelInferRequest, context: Context) -> oip.ModelInferResponse:
        return await self.infer(request)

    async def ModelStreamInfer(
        self, request_iterator: AsyncIterator[oip.ModelInferRequest], context: Context
    ) -> AsyncIterator[oip.ModelStreamInferResponse]:
        """Answers in the order of the requests."""
        ends = current().metadata.get(END_STREAM_ON_ERROR) == "true"

        async def answer(request: oip.ModelInferRequest) -> oip.ModelStreamInferResponse:
            try:
                return oip.ModelStreamInferResponse(infer_response=await self.infer(request))
            except TreadleError as error:
                if ends:
                    raise
                failed = oip.ModelInferResponse(
                    model_name=request.model_name, model_version=request.model_version, id=request.id
                )
                return oip.ModelStreamInferResponse(error_message=error.message, infer_response=failed)

        async for response in answered(request_iterator, answer, self.stream_in_flight, in_order=True):
            yield response

    async def infer(self, request: oip.ModelInferRequest) -> oip.ModelInferResponse:
        """One inference: by the deployment's policy if the name is a deployment's, else passed on."""
        deployment = self._deployment(request.model_name)
        if deployment is None:
            return await self.inference.ModelInfer(request, metadata=forwarded_metadata())
        pin = _version(request.model_version) if request.model_version else parse_pin(current().metadata)
        tensors = decode_inputs(request, _input_dtypes(deployment))
        ask = Ask(
            deployment=deployment.name,
            tensors={name: _column(name, array) for name, array in tensors.items()},
            outputs=tuple(output.name for output in request.outputs),
            request_id=request.id,
            pin=pin,
        )
        answer = await self.chain.predict(ask)
        annotate(deployment.name, answer)
        return _response(request, answer)

    def _deployment(self, name: str) -> Deployment | None:
        return self.chain.snapshot().deployments.get(name)

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


def _input_dtypes(deployment: Deployment) -> Mapping[str, str]:
    version = deployment.versions.get(deployment.primary)
    return {} if version is None else {spec.name: spec.dtype for spec in version.signature.inputs}


def _column(name: str, array: "np.ndarray[Any, np.dtype[Any]]") -> Column:
    if array.ndim == 0:
        raise InvalidInput.at(f"inputs[{name}]", "has no axis of rows")
    if array.dtype == object:
        text = bool(array.size) and isinstance(array.flat[0], str)
        return Column(name, "STRING" if text else "BYTES", array)
    return Column(name, dtype_name(array.dtype), array)


def _response(request: oip.ModelInferRequest, answer: Answer) -> oip.ModelInferResponse:
    response = oip.ModelInferResponse(
        model_name=request.model_name, model_version=str(answer.ref.version), id=request.id
    )
    response.parameters["treadle_served_by"].string_param = answer.served_by
    response.parameters["treadle_prediction_ids"].string_param = ",".join(answer.prediction_ids)
    if answer.degraded_reason:
        response.parameters["treadle_degraded_reason"].string_param = answer.degraded_reason
    outputs = {column.name: column.values for column in answer.outputs}
    encode_outputs(response, outputs, raw=bool(request.raw_input_contents))
    return response
