"""The one way of a prediction through the gateway, whatever entry point it came through.

`predict` admits a request and hands it to the coalescer; what requests of one kind then go through together, as a
batch, is the list of stages in `PredictionPipeline.__init__`. `docs/pipeline.md` walks one request through it.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from opentelemetry import trace
from opentelemetry.trace import Tracer

from treadle.core.errors import TreadleError
from treadle.gateway.pipeline.admission import Admission
from treadle.gateway.pipeline.batch.prediction import PredictionRecord, PredictionResult
from treadle.gateway.pipeline.batch.request import PredictionRequest
from treadle.gateway.pipeline.batch.request_batch import PendingRequest, RequestBatch
from treadle.gateway.pipeline.coalescing.coalescer import Coalescer, CoalescingKey, weight_of
from treadle.gateway.pipeline.coalescing.coalescing_queue import CoalesceLimits
from treadle.gateway.pipeline.stages.answering import AnswerRequests
from treadle.gateway.pipeline.stages.fallback import FallBack, isolate_faults
from treadle.gateway.pipeline.stages.feature_lookup import LookUpFeatures
from treadle.gateway.pipeline.stages.inference import RunInference, assemble_inputs
from treadle.gateway.pipeline.stages.prediction_ids import PredictionIds
from treadle.gateway.pipeline.stages.routing import Route
from treadle.gateway.pipeline.stages.shadowing import Shadow, ShadowRunner
from treadle.gateway.pipeline.stages.stage import compose
from treadle.gateway.pipeline.validation import RequestValidator
from treadle.gateway.policy.deployments import PolicySnapshot, ServedDeployment
from treadle.gateway.upstream.ports import FeatureClient, InferenceClient
from treadle.rpc.context import current, remaining


@dataclass(frozen=True, slots=True)
class PipelineParts:
    """What the pipeline is made of. `remember` is called with each record before its callers get their answers."""

    policies: Callable[[], PolicySnapshot]
    admission: Admission
    validator: RequestValidator
    features: FeatureClient
    inference: InferenceClient
    shadows: ShadowRunner
    ids: PredictionIds
    remember: Callable[[PredictionRecord], None]
    random: Callable[[], float]
    """Numbers in [0, 1), for requests that no key keeps on one version."""
    coalesce: CoalesceLimits
    tracer: Tracer
    clock: Callable[[], float] = time.monotonic


class PredictionPipeline:
    """Answers requests."""

    def __init__(self, parts: PipelineParts) -> None:
        clock = parts.clock
        self._parts = parts
        self._coalescer = Coalescer(self._run, parts.coalesce, parts.tracer, clock)
        self._handle = compose(
            [
                Route(parts.random),  # a batch for each version that the traffic policy chose
                Shadow(parts.shadows, clock),  # a copy to each shadow version, once the requests are answered
                FallBack(clock),  # the version, then the fallbacks for the requests that it failed to answer
                isolate_faults,  # the fault of one request stays its own
                LookUpFeatures(parts.features, clock),
                assemble_inputs,
                AnswerRequests(parts.ids, parts.remember, clock),  # after the record of them is written
                RunInference(parts.inference, clock),
            ]
        )

    @property
    def policies(self) -> PolicySnapshot:
        """The deployments as they are now."""
        return self._parts.policies()

    async def predict(self, request: PredictionRequest) -> PredictionResult:
        """The answer, or a TreadleError: see `PredictionService.Predict` for which."""
        parts = self._parts
        arrived = parts.clock()
        deployment = self.policies.deployment(request.deployment)
        limit = parts.admission.enter(deployment.name)
        prediction: PredictionResult | None = None
        try:
            parts.validator.check(request, deployment)
            pending = self._pending(request, deployment, arrived)
            prediction = await self._coalescer.submit(CoalescingKey.of(request, pending.context), pending)
            return prediction
        finally:
            is_plain = prediction is not None and not prediction.degraded_reason
            parts.admission.leave(limit, parts.clock() - arrived if is_plain else None)

    def _pending(self, request: PredictionRequest, deployment: ServedDeployment, arrived: float) -> PendingRequest:
        left = remaining()
        return PendingRequest(
            request,
            current(),
            arrived,
            arrived + (deployment.request_timeout_seconds if left is None else left),
            trace.get_current_span().get_span_context(),
            request.rows,
            weight_of(request),
        )

    async def _run(self, deployment: str, requests: Sequence[PendingRequest]) -> None:
        """Gives each request its outcome."""
        try:
            batch = RequestBatch.join(self.policies.deployment(deployment), requests)
            await self._handle(batch)
        except TreadleError as error:
            for pending in requests:
                pending.fail(error)
