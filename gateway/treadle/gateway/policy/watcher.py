"""Keeps the snapshot of deployments current: follows the registry, asks for what deployments name, saves a copy."""

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

from structlog.typing import FilteringBoundLogger

from treadle import oip
from treadle.core.background import Background
from treadle.core.errors import NotFound, TreadleError
from treadle.core.model_ref import ModelRef
from treadle.gateway.policy.deployments import PolicySnapshot
from treadle.gateway.policy.policy_cache import PolicyCache
from treadle.gateway.policy.readiness_gate import ReadinessGate
from treadle.rpc.client.deployment_follower import DeploymentFollower
from treadle.v1 import features_pb2, features_pb2_grpc, registry_pb2, registry_pb2_grpc

FILE = "policies.json"
_CALL_TIMEOUT_SECONDS = 5.0
_RETRY_SECONDS = 1.0


class PolicyWatcher:
    """The deployments that requests may use: `snapshot()`, which is replaced and never changed.

    Neither the registry nor the feature service must be up: what was known last is served. `hide` is told the names of
    sensitive columns as they become known.
    """

    def __init__(
        self,
        registry: "registry_pb2_grpc.RegistryServiceAsyncStub",
        features: "features_pb2_grpc.FeatureServiceAsyncStub",
        inference: oip.GRPCInferenceServiceStub,
        home: Path,
        log: FilteringBoundLogger,
        refresh_seconds: float,
        hide: Callable[[frozenset[str]], None] = lambda _: None,
    ) -> None:
        self._registry = registry
        self._features = features
        self._log = log
        self._refresh_seconds = refresh_seconds
        self._hide = hide
        self._cache = PolicyCache()
        self._follower = DeploymentFollower(registry, home / FILE, log, self._cache, self._deployments_changed)
        self._gate = ReadinessGate(inference, self._publish)
        self._snapshot = PolicySnapshot()

    def snapshot(self) -> PolicySnapshot:
        """The present deployments."""
        return self._snapshot

    @property
    def caught_up(self) -> asyncio.Event:
        """Set once the snapshot holds what the registry had when it was first reached."""
        return self._follower.caught_up

    async def start(self, background: Background) -> None:
        """Publishes the copy on disk, then follows registry, feature service and inference in the background."""
        await self._follower.restore()
        self._publish()
        background.start("watch_deployments", self._follower.run)
        background.start("refresh_features", self._refresh_forever)
        background.start("await_readiness", self._gate.run)

    async def _deployments_changed(self) -> None:
        self._cache.prune(self._follower.deployments)
        await self._complete()
        self._publish()

    async def _refresh_forever(self) -> None:
        """Asks again, now and then, for what deployments name: definitions of features change without an event."""
        while True:
            missing = self._cache.missing_versions(self._follower.deployments) or self._cache.missing_services()
            await asyncio.sleep(min(_RETRY_SECONDS, self._refresh_seconds) if missing else self._refresh_seconds)
            await self._complete()
            self._publish()
            await self._follower.save()

    async def _complete(self) -> None:
        """Asks for manifests that are not known and for feature services; what fails now is asked again later."""
        for ref in self._cache.missing_versions(self._follower.deployments):
            await self._attempt(f"model {ref}", partial(self._fetch_version, ref))
        names = self._cache.named_services()
        if names:
            await self._attempt("feature services", partial(self._fetch_services, names))

    async def _fetch_version(self, ref: ModelRef) -> None:
        request = registry_pb2.GetModelVersionRequest(model=ref.model, version=ref.version)
        self._cache.add_version(await self._registry.GetModelVersion(request, timeout=_CALL_TIMEOUT_SECONDS))

    async def _fetch_services(self, names: list[str]) -> None:
        request = features_pb2.ListFeatureServicesRequest(names=names)
        try:
            found = await self._features.ListFeatureServices(request, timeout=_CALL_TIMEOUT_SECONDS)
        except NotFound:  # one that is not there must not hide the others
            found = await self._features.ListFeatureServices(
                features_pb2.ListFeatureServicesRequest(), timeout=_CALL_TIMEOUT_SECONDS
            )
        self._cache.services = {spec.name: spec for spec in found.services if spec.name in names}
        self._cache.views = {view.name: view for view in found.views}

    async def _attempt(self, what: str, fetch: Callable[[], Awaitable[None]]) -> None:
        try:
            await fetch()
        except TreadleError as error:
            self._log.warning("cannot be asked for now; asking again later", what=what, error=error.message)

    def _publish(self) -> None:
        wanted = self._cache.snapshot(self._follower.deployments, self._refused).deployments
        self._snapshot = PolicySnapshot(self._gate.select(self._snapshot.deployments, wanted))
        for deployment in wanted.values():
            self._hide(deployment.sensitive_columns or frozenset())

    def _refused(self, what: str, error: TreadleError) -> None:
        self._log.error("cannot be served as it is registered", what=what, error=error.message)
