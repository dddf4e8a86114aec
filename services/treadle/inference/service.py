"""The composition root of the inference service."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Annotated

from treadle import oip
from treadle.core.settings import Settings, bounds
from treadle.inference.api.admission import ModelLimits
from treadle.inference.api.data_plane import DataPlane
from treadle.inference.api.servicer import InferenceServicer
from treadle.inference.batching.metrics import ModelMeters, ModelObserver
from treadle.inference.models.artifacts import ArtifactCache
from treadle.inference.models.desired_state import DesiredStateFollower
from treadle.inference.models.loader import LoadOptions, ModelLoader
from treadle.inference.models.manifest_cache import ManifestCache
from treadle.inference.models.repository import Repository, RepositoryDependencies
from treadle.plugins.checked import SAMPLE_TOLERANCE
from treadle.plugins.manager import Plugins, names_in
from treadle.rpc.app.runtime import Runtime


@dataclass(frozen=True)
class InferenceSettings(Settings):
    """TREADLE_INFERENCE_MAX_BATCH_ROWS and so on."""

    max_batch_rows: Annotated[int, bounds(1, 1_000_000)] = 1024
    """Rows in one batch; a larger request is split."""
    queue_rows: Annotated[int, bounds(1, 100_000_000)] = 16_384
    """Rows that may wait for one model version; more are refused with RESOURCE_EXHAUSTED."""
    max_request_rows: Annotated[int, bounds(1, 100_000_000)] = 100_000
    """Rows in one request."""
    threads_per_model: Annotated[int, bounds(0, 1_024)] = 0
    """Threads that one version may use inside its backend; 0: the fewest that a measurement at load finds good."""
    compiled: bool = True
    """Serve the compiled form of a model where it has one that answers as the original did."""
    load_timeout_seconds: Annotated[float, bounds(0.001, 86_400)] = 120.0
    """Time for loading and warming up, without the download."""
    predict_timeout_seconds: Annotated[float, bounds(0.001, 86_400)] = 30.0
    """A batch that takes longer means that the model hangs: it becomes UNAVAILABLE."""
    target_seconds: Annotated[float, bounds(0.001, 600)] = 0.25
    """Where requests take longer than that from arrival to answer, and than eight times a lone one, fewer are let in
    at a time; the others are refused with RESOURCE_EXHAUSTED."""
    linger_seconds: Annotated[float, bounds(0, 86_400)] = 10.0
    """How long a version that no deployment serves any more stays loaded once those in its place are READY: until
    every gateway has heard of the change."""
    parallel_loads: Annotated[int, bounds(1, 1_024)] = 2
    """Versions that are loaded at the same time."""
    sample_tolerance: Annotated[float, bounds(0, 1)] = SAMPLE_TOLERANCE
    """Relative and absolute difference allowed between sample outputs at load and when the model was made."""
    stream_in_flight: Annotated[int, bounds(1, 65_536)] = 64
    """Requests of one stream that run at the same time."""
    blocked_plugins: str = ""
    """Names of plugins that must not be used, separated by commas."""


@asynccontextmanager
async def open_service(
    settings: InferenceSettings, runtime: Runtime, plugins: Plugins | None = None
) -> AsyncIterator[None]:
    """Starts with what it served last, and follows the registry from there."""
    plugins = plugins or Plugins.load(blocked=names_in(settings.blocked_plugins))
    registry = runtime.connect("registry")
    manifests = ManifestCache(registry, runtime.home)
    repository = _build_repository(settings, runtime, plugins, manifests)
    desired = DesiredStateFollower(registry, repository, runtime.home / "desired.json", runtime.telemetry.log)
    servicer = InferenceServicer(
        DataPlane(repository, settings.max_request_rows),
        manifests,
        save_pins=desired.save_pins,
        max_batch_rows=settings.max_batch_rows,
        stream_in_flight=settings.stream_in_flight,
    )
    oip.add_GRPCInferenceServiceServicer_to_server(servicer, runtime.server)
    runtime.reflect(oip.POOL)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(repository.close)
        await desired.restore()
        background = await stack.enter_async_context(runtime.background())
        background.start("watch_deployments", desired.run)
        yield


def _build_repository(
    settings: InferenceSettings, runtime: Runtime, plugins: Plugins, manifests: ManifestCache
) -> Repository:
    telemetry, artifacts = runtime.telemetry, ArtifactCache(runtime.home, manifests.fetch)
    meters = ModelMeters(telemetry.meters)
    options = LoadOptions(
        threads=settings.threads_per_model,
        largest_batch=settings.max_batch_rows,
        limit_seconds=settings.load_timeout_seconds,
        tolerance=settings.sample_tolerance,
        compiled=settings.compiled,
    )
    loader = ModelLoader(plugins, artifacts, options, telemetry.log)
    dependencies = RepositoryDependencies(
        describe=manifests.describe,
        load=loader.load,
        discard=artifacts.discard,
        observer=lambda key: ModelObserver(key, telemetry.tracer, meters),
        announce=runtime.health.set,
        limits=ModelLimits(
            settings.max_batch_rows, settings.queue_rows, settings.predict_timeout_seconds, settings.target_seconds
        ),
        log=telemetry.log,
        parallel_loads=settings.parallel_loads,
        linger_seconds=settings.linger_seconds,
    )
    return Repository(dependencies)
