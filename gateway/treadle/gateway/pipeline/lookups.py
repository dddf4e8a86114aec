"""The feature lookups of one request: each feature service is asked at most once, whoever needs it."""

from treadle.core.column import Column
from treadle.core.errors import InvalidInput, TreadleError, Violation
from treadle.gateway.pipeline.feature_batch import Features
from treadle.gateway.pipeline.request import Ask
from treadle.gateway.policy.deployments import Deployment
from treadle.gateway.upstream.ports import FeatureLookup


class Lookups:
    """Remembers answers and failures: a fallback does not wait a second time for what has just failed."""

    def __init__(self, ask: Ask, deployment: Deployment, hop: FeatureLookup) -> None:
        self._ask = ask
        self._deployment = deployment
        self._hop = hop
        self._found: dict[str, Features] = {}
        self._failed: dict[str, TreadleError] = {}

    async def get(self, service: str, timeout: float) -> Features:
        """Features by name; `timeout` is in seconds. Raises what the lookup raised, each time."""
        if service in self._failed:
            raise self._failed[service]
        if service not in self._found:
            try:
                entities, context = self._columns(service)
                self._found[service] = await self._hop.look_up(
                    service, entities, context, self._ask.now_micros, timeout
                )
            except TreadleError as error:
                self._failed[service] = error
                raise
        return self._found[service]

    def _columns(self, service: str) -> tuple[list[Column], list[Column]]:
        """What of the request the feature service takes; it refuses columns that it does not know."""
        ask = self._ask
        needs = self._deployment.feature_services.get(service)
        if needs is None:  # not described yet: the service itself will say what is wrong
            return list(ask.entities.values()), list(ask.context.values())
        sent = {**ask.context, **ask.entities}
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
