"""The gRPC servicer of `inference.GRPCInferenceService`: decodes requests, calls the core, encodes responses."""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from importlib.metadata import version as installed_version

from treadle import oip
from treadle.core.errors import FailedPrecondition, InvalidInput, TreadleError, Violation
from treadle.core.model_ref import ModelRef
from treadle.core.numbers import whole_number
from treadle.inference.api import descriptions as describe
from treadle.inference.api.data_plane import DataPlane
from treadle.inference.api.infer_codec import reject_unknown_parameters
from treadle.inference.models.entry import ModelState
from treadle.inference.models.manifest_cache import ManifestCache
from treadle.inference.models.repository import Repository
from treadle.oip.service import Context
from treadle.rpc import context as call_context
from treadle.rpc.server.streams import answered

_EXTENSIONS = (
    "binary_tensor_data",
    "model_configuration",
    "model_repository",
    "model_repository(unload_dependents)",
    "parameters",
    "statistics",
)
_Parameters = Mapping[str, oip.ModelRepositoryParameter]


class InferenceServicer(oip.GRPCInferenceServiceServicer):
    """All twelve RPCs."""

    def __init__(
        self,
        data_plane: DataPlane,
        manifests: ManifestCache,
        *,
        save_pins: Callable[[], Awaitable[None]],
        max_batch_rows: int,
        stream_in_flight: int,
    ) -> None:
        self._data_plane = data_plane
        self._repository: Repository = data_plane.repository
        self._manifests = manifests
        self._save_pins = save_pins
        self._max_batch_rows = max_batch_rows
        self._stream_in_flight = stream_in_flight

    async def ServerLive(self, request: oip.ServerLiveRequest, context: Context) -> oip.ServerLiveResponse:
        """Always true: the process responds."""
        return oip.ServerLiveResponse(live=True)

    async def ServerReady(self, request: oip.ServerReadyRequest, context: Context) -> oip.ServerReadyResponse:
        """Always true; the readiness of a model is that of ModelReady."""
        return oip.ServerReadyResponse(ready=True)

    async def ModelReady(self, request: oip.ModelReadyRequest, context: Context) -> oip.ModelReadyResponse:
        """Whether the version that a request of this name would use is READY."""
        entry = self._repository.find(request.name, request.version)
        return oip.ModelReadyResponse(ready=entry.state is ModelState.READY)

    async def ServerMetadata(self, request: oip.ServerMetadataRequest, context: Context) -> oip.ServerMetadataResponse:
        """Name, version and supported extensions, in Triton's names."""
        return oip.ServerMetadataResponse(
            name="treadle-inference", version=installed_version("treadle"), extensions=_EXTENSIONS
        )

    async def ModelMetadata(self, request: oip.ModelMetadataRequest, context: Context) -> oip.ModelMetadataResponse:
        """Names, datatypes and shapes. UNAVAILABLE until the model is READY."""
        served = self._repository.served_model(request.name, request.version)
        versions = [
            str(entry.key.version)
            for entry in self._repository.entries
            if entry.key.model == request.name and entry.state is ModelState.READY
        ]
        return describe.metadata(served, versions)

    async def ModelConfig(self, request: oip.ModelConfigRequest, context: Context) -> oip.ModelConfigResponse:
        """Triton's model configuration. UNAVAILABLE until the model is READY."""
        served = self._repository.served_model(request.name, request.version)
        return oip.ModelConfigResponse(config=describe.config(served, self._max_batch_rows))

    async def ModelStatistics(
        self, request: oip.ModelStatisticsRequest, context: Context
    ) -> oip.ModelStatisticsResponse:
        """Statistics of one version, of all versions of a model, or of all models."""
        if request.name and request.version:
            found = [self._repository.find(request.name, request.version)]
        else:
            if request.name:
                self._repository.find(request.name)
            found = [e for e in self._repository.entries if not request.name or e.key.model == request.name]
        return oip.ModelStatisticsResponse(
            model_stats=[describe.statistics(entry.served) for entry in found if entry.served is not None]
        )

    async def ModelInfer(self, request: oip.ModelInferRequest, context: Context) -> oip.ModelInferResponse:
        """Runs one request, batched with concurrent ones."""
        return await self._data_plane.infer(request)

    async def ModelStreamInfer(
        self, request_iterator: AsyncIterator[oip.ModelInferRequest], context: Context
    ) -> AsyncIterator[oip.ModelStreamInferResponse]:
        """Runs the requests of a stream concurrently; responses are in request order."""
        strict = call_context.current().metadata.get("triton_grpc_error", "") == "true"

        async def answer(request: oip.ModelInferRequest) -> oip.ModelStreamInferResponse:
            return await self._infer_streamed(request, strict)

        async for response in answered(request_iterator, answer, self._stream_in_flight, in_order=True):
            yield response

    async def _infer_streamed(self, request: oip.ModelInferRequest, strict: bool) -> oip.ModelStreamInferResponse:
        try:
            response = await self._data_plane.infer(request)
        except TreadleError as error:
            if strict:
                raise
            named = oip.ModelInferResponse(
                id=request.id, model_name=request.model_name, model_version=request.model_version
            )
            return oip.ModelStreamInferResponse(error_message=error.message, infer_response=named)
        if request.parameters["triton_enable_empty_final_response"].bool_param:
            response.parameters["triton_final_response"].bool_param = True
        return oip.ModelStreamInferResponse(infer_response=response)

    async def RepositoryIndex(
        self, request: oip.RepositoryIndexRequest, context: Context
    ) -> oip.RepositoryIndexResponse:
        """Every version of this process with its state and, if UNAVAILABLE, the reason."""
        return oip.RepositoryIndexResponse(
            models=[
                oip.RepositoryIndexResponse.ModelIndex(
                    name=entry.key.model, version=str(entry.key.version), state=entry.state, reason=entry.reason
                )
                for entry in self._repository.entries
                if entry.state is ModelState.READY or not request.ready
            ]
        )

    async def RepositoryModelLoad(
        self, request: oip.RepositoryModelLoadRequest, context: Context
    ) -> oip.RepositoryModelLoadResponse:
        """Loads and pins a version; responds when it is READY."""
        version = _version_parameter(request.parameters, frozenset({"version"}))
        if version is None:
            key = await self._manifests.latest(request.model_name)
        else:
            key = ModelRef.checked(request.model_name, version)
        new = key not in self._repository.pinned
        self._repository.pin([key])
        try:
            await self._repository.wait_until_loaded(key)
        except TreadleError:
            if new:  # a version that fails to load is not pinned
                self._repository.unpin([key])
            raise
        await self._save_pins()
        return oip.RepositoryModelLoadResponse()

    async def RepositoryModelUnload(
        self, request: oip.RepositoryModelUnloadRequest, context: Context
    ) -> oip.RepositoryModelUnloadResponse:
        """Unpins and unloads one version or all; responds when they are unloaded. FAILED_PRECONDITION if deployed."""
        version = _version_parameter(request.parameters, frozenset({"version", "unload_dependents"}))
        self._repository.find(request.model_name, "" if version is None else str(version))
        keys = [
            entry.key
            for entry in self._repository.entries
            if entry.key.model == request.model_name and version in {None, entry.key.version}
        ]
        needed = [str(key) for key in keys if key in self._repository.desired]
        if needed:
            raise FailedPrecondition(f"deployments need {', '.join(needed)}; change them first")
        self._repository.unpin(keys)
        await self._save_pins()
        await self._repository.wait_until_unloaded(keys)
        return oip.RepositoryModelUnloadResponse()


def _version_parameter(parameters: _Parameters, known: frozenset[str]) -> int | None:
    """The parameter `version`, or None without it."""
    reject_unknown_parameters(parameters, known, "the request")
    if "version" not in parameters:
        return None
    given = parameters["version"]
    version = whole_number(given.string_param) or given.int64_param
    if version < 1:
        raise InvalidInput("parameter version must be a number from 1", [Violation("parameters.version", "not over 0")])
    return version
