"""Looks up the features of a batch: each feature service once, for all versions that need it."""

from collections.abc import Callable, Sequence

from treadle.core.column import Column
from treadle.core.errors import InvalidInput, TreadleError, Violation
from treadle.gateway.pipeline.batch.feature_batch import FeatureBatch
from treadle.gateway.pipeline.batch.request_batch import RequestBatch
from treadle.gateway.pipeline.stages.stage import Handler
from treadle.gateway.pipeline.stages.upstream_errors import error_prefix
from treadle.gateway.policy.deployments import ServedVersion
from treadle.gateway.upstream.ports import FeatureClient

FEATURE_TIMEOUT_FRACTION = 0.5
"""Unless the deployment says how long features may take: this fraction of the time that the step has."""


class LookUpFeatures:
    """Sets `features` where the version needs some that the caller has not sent. `clock` is the pipeline's."""

    def __init__(self, client: FeatureClient, clock: Callable[[], float]) -> None:
        self._client = client
        self._clock = clock

    async def __call__(self, batch: RequestBatch, next_stage: Handler) -> None:
        """Stage."""
        if batch.step.ref is not None and not batch.tensors:
            version = batch.deployment.version(batch.step.ref)
            if version.feature_service and not _covered(version, batch):
                with error_prefix("features"):
                    batch.features = await self._features(batch, version.feature_service)
        await next_stage(batch)

    async def _features(self, batch: RequestBatch, service: str) -> FeatureBatch:
        """Raises what the lookup raised, each time that a step asks for it."""
        found = batch.lookups.get(service)
        if found is None:
            try:
                found = await self._look_up(batch, service)
            except TreadleError as error:
                found = error
            batch.lookups[service] = found
        if isinstance(found, TreadleError):
            raise found.clone()
        return found

    async def _look_up(self, batch: RequestBatch, service: str) -> FeatureBatch:
        entities, context = _lookup_columns(batch, service)
        left = max(batch.deadlines) - self._clock()
        timeout = min(left, batch.deployment.feature_timeout_seconds or left * FEATURE_TIMEOUT_FRACTION)
        now_micros = batch.requests[0].request.now_micros
        return await self._client.look_up(service, entities, context, now_micros, max(0.0, timeout))


def _covered(version: ServedVersion, batch: RequestBatch) -> bool:
    """Whether the caller sent every column that the version needs, so that nothing must be looked up."""
    return all(name in batch.context or name in batch.entities for name in version.needs)


def _lookup_columns(batch: RequestBatch, service: str) -> tuple[Sequence[Column], Sequence[Column]]:
    """The entity and context columns that the feature service takes; it refuses columns that it does not know."""
    needs = batch.deployment.feature_services.get(service)
    if needs is None:  # not described yet: the service itself will say what is wrong
        return list(batch.entities.values()), list(batch.context.values())
    sent = {**batch.context, **batch.entities}
    absent = [name for name in (*needs.entities, *needs.context) if name not in sent]
    if absent:
        violations = [
            Violation(
                f"{'entities' if name in needs.entities else 'context'}[{name}]",
                f"is missing; feature service {service!r} needs it",
            )
            for name in absent
        ]
        text = ", ".join(violation.field for violation in violations)
        raise InvalidInput(f"{text} is missing: feature service {service!r} needs it", violations)
    return [sent[name] for name in needs.entities], [sent[name] for name in needs.context]
