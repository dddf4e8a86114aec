"""The composition root of the inference service."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from treadle import oip
from treadle.core.errors import FailedPrecondition
from treadle.inference.api.admission import Limits
from treadle.inference.api.data_plane import Inferring
from treadle.inference.api.servicer import InferenceServicer
from treadle.inference.batching.metrics import ModelMeters, ModelObserver
from treadle.inference.models.artifacts import Artifacts
from treadle.inference.models.desired_state import DesiredStateFollower
from treadle.inference.models.loader import Loader, Loading
from treadle.inference.models.manifest_cache import ManifestCache
from treadle.inference.models.repository import Repository, Tools
from treadle.plugins.checked import SAMPLE_TOLERANCE
from treadle.plugins.manager import Plugins, names_in
from treadle.rpc.app.runtime import Runtime

_OVER_ZERO = (
    "max_batch_rows",
    "queue_rows",
    "max_request_rows",
    "load_timeout_seconds",
    "predict_timeout_seconds",
    "target_seconds",
    "parallel_loads",
    "stream_in_flight",
)


@dataclass(frozen=True)
class InferenceSettings:
    """TREADLE_INFERENCE_MAX_BATCH_ROWS and so on."""

    max_batch_rows: int = 1024
    """Rows in one batch; a larger request is split."""
    queue_rows: int = 16_384
    """Rows that may wait for one model version; more are refused with RESOURCE_EXHAUSTED."""
    max_request_rows: int = 100_000
    """Rows in one request."""
    threads_per_model: int = 0
    """Threads that one version may use inside its backend; 0: the fewest that a measurement at load finds good."""
    compiled: bool = True
    """Serve the compiled form of a model where it has one that answers as the original did."""
    load_timeout_seconds: float = 120.0
    """Time for loading and warming up, without the download."""
    predict_timeout_seconds: float = 30.0
    """A batch that takes longer means that the model hangs: it becomes UNAVAILABLE."""
    target_seconds: float = 0.25
    """Where requests take longer than that from door to door, and than eight times a lone one, fewer are let in at a
    time; the others are refused with RESOURCE_EXHAUSTED."""
    linger_seconds: float = 10.0
    """How long a version that deployments let go of stays once those in its place are READY: until every gateway has
    heard of the change."""
    parallel_loads: int = 2
    """Versions that are loaded at the same time."""
    sample_tolerance: float = SAMPLE_TOLERANCE
    """Relative and absolute difference allowed between sample outputs at load and when the model was made."""
    stream_in_flight: int = 64
    """Requests of one stream that run at the same time."""
    blocked_plugins: str = ""
    """Names of plugins that must not be used, separated by commas."""

    def __post_init__(self) -> None:
        for name in _OVER_ZERO:
            if not getattr(self, name) > 0:  # so written because NaN is not over 0 either
                raise FailedPrecondition(f"TREADLE_INFERENCE_{name.upper()} must be over 0")
        if not self.linger_seconds >= 0:
            raise FailedPrecondition("TREADLE_INFERENCE_LINGER_SECONDS must be 0 or more")
        if self.threads_per_model < 0:
            raise FailedPrecondition("TREADLE_INFERENCE_THREADS_PER_MODEL must be 1 or more, or 0 to measure")


@asynccontextmanager
async def open_service(
    settings: InferenceSettings, runtime: Runtime, plugins: Plugins | None = None
) -> AsyncIterator[None]:
    """Starts with what it served last, and follows the registry from there."""
    plugins = plugins or Plugins.load(blocked=names_in(settings.blocked_plugins))
    registry = runtime.connect("registry")
    manifests = ManifestCache(registry, runtime.home)
    repository = _repository(settings, runtime, plugins, manifests)
    desired = DesiredStateFollower(registry, repository, runtime.home / "desired.json", runtime.telemetry.log)
    servicer = InferenceServicer(
        Inferring(repository, settings.max_request_rows),
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


def _repository(
    settings: InferenceSettings, runtime: Runtime, plugins: Plugins, manifests: ManifestCache
) -> Repository:
    telemetry, artifacts = runtime.telemetry, Artifacts(runtime.home, manifests.fetch)
    meters = ModelMeters(telemetry.meters)
    how = Loading(
        threads=settings.threads_per_model,
        largest_batch=settings.max_batch_rows,
        limit_seconds=settings.load_timeout_seconds,
        tolerance=settings.sample_tolerance,
        compiled=settings.compiled,
    )
    loader = Loader(plugins, artifacts, how, telemetry.log)
    tools = Tools(
        describe=manifests.describe,
        load=loader.load,
        discard=artifacts.discard,
        observer=lambda key: ModelObserver(key, telemetry.tracer, meters),
        announce=runtime.health.set,
        limits=Limits(
            settings.max_batch_rows, settings.queue_rows, settings.predict_timeout_seconds, settings.target_seconds
        ),
        log=telemetry.log,
        parallel_loads=settings.parallel_loads,
        linger_seconds=settings.linger_seconds,
    )
    return Repository(tools)
