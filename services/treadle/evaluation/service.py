"""The evaluation service: its settings and its composition root."""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Annotated

from treadle import oip
from treadle.core.errors import FailedPrecondition
from treadle.core.settings import Settings, bounds
from treadle.evaluation.ledger.ledger import Ledger
from treadle.evaluation.offline.metrics import EvaluationMetric, Floats, Task
from treadle.evaluation.offline.predictor import Predictor
from treadle.evaluation.offline.runner import EvaluationUpstreams, Runner
from treadle.evaluation.servicer import EvaluationServicer
from treadle.observability.telemetry.telemetry import Telemetry
from treadle.plugins.manager import Plugins, names_in
from treadle.rpc.app.runtime import Runtime
from treadle.v1 import evaluation_pb2_grpc, features_pb2_grpc, registry_pb2_grpc

PURGE_INTERVAL_SECONDS = 3600.0


@dataclass(frozen=True)
class EvaluationSettings(Settings):
    """TREADLE_EVALUATION_…"""

    parallel_evaluations: Annotated[int, bounds(1, 1_024)] = 2
    """Evaluations that run at once; more wait."""
    live_metrics_rows: Annotated[int, bounds(1, 100_000_000)] = 200_000
    """The newest labelled rows of each version that live metrics are computed on; counts are of all rows. Bounds the
    memory of one query: about 100 bytes a row and score."""
    retention_days: Annotated[int, bounds(0, 36_500)] = 0
    """Days that predictions and labels are kept after they arrived; 0 keeps all. Older rows are deleted once an hour,
    and their prediction ids too, so a prediction that is sent again after that counts as new."""
    blocked_plugins: str = ""
    """Names of plugins that must not be used, separated by commas."""


@asynccontextmanager
async def open_service(
    settings: EvaluationSettings, runtime: Runtime, plugins: Plugins | None = None
) -> AsyncIterator[None]:
    """Opens the ledger, deletes the files that a crash left behind, then serves."""
    plugins = plugins or Plugins.load(blocked=names_in(settings.blocked_plugins))
    metrics = plugin_metrics(plugins)
    peers = EvaluationUpstreams(
        registry_pb2_grpc.RegistryServiceStub(runtime.connect("registry")),
        features_pb2_grpc.FeatureServiceStub(runtime.connect("features")),
        Predictor(oip.GRPCInferenceServiceStub(runtime.connect("inference"))),
    )
    ledger = Ledger(runtime.home, retention_days=settings.retention_days)
    await ledger.start()
    servicer = EvaluationServicer(
        Runner(peers, metrics),
        ledger,
        runtime.telemetry,
        metrics,
        settings.parallel_evaluations,
        settings.live_metrics_rows,
    )
    evaluation_pb2_grpc.add_EvaluationServiceServicer_to_server(servicer, runtime.server)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(ledger.close)
        background = await stack.enter_async_context(runtime.background())
        background.start("compact_ledger", ledger.compact_forever)
        if settings.retention_days:
            background.every("purge_ledger", PURGE_INTERVAL_SECONDS, partial(_purge, ledger, runtime.telemetry))
        yield


async def _purge(ledger: Ledger, telemetry: Telemetry) -> None:
    purged = await ledger.purge_expired()
    telemetry.log.info("deleted predictions and labels older than retention_days", rows=purged)


def plugin_metrics(plugins: Plugins) -> Callable[[Task], Sequence[EvaluationMetric]]:
    """A function from a task to the metrics of plugins for it.

    Plugins are imported at the first call, not at start-up.
    """

    def metrics(task: Task) -> Sequence[EvaluationMetric]:
        return [
            EvaluationMetric(name, _name_metric_in_errors(name, metric.score))
            for name, metric in plugins.metrics().items()
            if task.name.lower() in metric.tasks
        ]

    return metrics


def _name_metric_in_errors(name: str, score: Callable[[Floats, Floats], float]) -> Callable[[Floats, Floats], float]:
    """The score function, with errors as FailedPrecondition that names the plugin's metric.

    ValueError is passed on: it means that the metric is undefined for these rows.
    """

    def call(labels: Floats, scores: Floats) -> float:
        try:
            return float(score(labels, scores))
        except ValueError:
            raise
        except Exception as error:
            what = f'metric "{name}" of a plugin raised {type(error).__name__}'
            raise FailedPrecondition(f"{what}; mend the plugin, or block it (blocked_plugins)") from error

    return call
