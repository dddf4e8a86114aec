"""Keeps the snapshot true: watches deployments, asks for what they name, and saves the last good copy."""

import asyncio
from collections.abc import AsyncIterable, Awaitable, Callable
from functools import partial
from pathlib import Path

from structlog.typing import FilteringBoundLogger

from treadle import oip
from treadle.core.errors import NotFound, OutOfRange, TreadleError
from treadle.core.files import read_if_there, write_atomically
from treadle.core.model_ref import ModelRef
from treadle.core.tasks import in_thread
from treadle.gateway.policy.deployments import Snapshot
from treadle.gateway.policy.policy_cache import PolicyCache
from treadle.gateway.policy.readiness_gate import ReadinessGate
from treadle.v1 import features_pb2, features_pb2_grpc, registry_pb2, registry_pb2_grpc

FILE = "policies.json"
_ASK_SECONDS = 5.0
_RETRY_SECONDS = (0.1, 0.2, 0.5, 1.0)


class PolicyWatcher:
    """Owns the cache. `snapshot()` is the present picture; it is replaced, never changed.

    `run` and `refresh_forever` run beside the service, for ever. Neither the registry nor the feature service must
    be up: what was known last is served. `hide` is told the names of sensitive columns as they become known.
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
        self._path = home / FILE
        self._log = log
        self._refresh_seconds = refresh_seconds
        self._hide = hide
        self._cache = PolicyCache()
        self._snapshot = Snapshot()
        self._gate = ReadinessGate(inference, self._publish)
        self._unheard: set[str] = set()
        self._live = False
        self._saving = asyncio.Lock()
        self._saved = ""
        self.caught_up = asyncio.Event()

    def snapshot(self) -> Snapshot:
        """The present picture."""
        return self._snapshot

    async def start(self) -> None:
        """Reads the copy on disk."""
        await asyncio.to_thread(self._load)
        self._publish()

    def _load(self) -> None:
        content = read_if_there(self._path)
        if content is None:
            return
        try:
            self._cache = PolicyCache.from_json(content)
            self._log.info("serving the last good copy of the policies", deployments=len(self._cache.deployments))
        except TreadleError as error:
            broken = self._path.with_suffix(".broken")
            self._path.replace(broken)
            self._log.error("the copy of the policies is broken; set aside", path=str(broken), error=error.message)

    async def close(self) -> None:
        """Ends what waits for versions to become READY."""
        await self._gate.close()

    async def run(self) -> None:
        """Follows the registry, through its absences."""
        failures = 0
        while True:
            try:
                async for event in self._events():
                    failures = 0
                    await self._take(event)
            except OutOfRange:
                self._log.warning("the registry has another history; reading all deployments again")
                self._cache.cursor = ""
            except TreadleError as error:
                if failures == 0:
                    self._log.warning("the registry cannot be watched; serving what is known", error=error.message)
            await asyncio.sleep(_RETRY_SECONDS[min(failures, len(_RETRY_SECONDS) - 1)])
            failures += 1

    def _events(self) -> AsyncIterable[registry_pb2.DeploymentEvent]:
        # Without a cursor the registry tells all there is, so what it has not named by the end of that is gone.
        self._live = False
        self._unheard = set() if self._cache.cursor else set(self._cache.deployments)
        return self._registry.WatchDeployments(registry_pb2.WatchDeploymentsRequest(cursor=self._cache.cursor))

    async def _take(self, event: registry_pb2.DeploymentEvent) -> None:
        kind = event.WhichOneof("change")
        if kind == "applied":
            self._cache.deployments[event.applied.name] = event.applied
            self._unheard.discard(event.applied.name)
        elif kind == "deleted":
            self._cache.deployments.pop(event.deleted, None)
        else:
            for name in self._unheard:
                self._cache.deployments.pop(name, None)
            self._unheard = set()
            self._live = True
        self._cache.cursor = event.cursor or self._cache.cursor
        if self._live:  # until then there is more to come, and what is known already is served
            self._cache.prune()
            await self._complete()
            self._publish()
            await self._save()
            self.caught_up.set()

    async def refresh_forever(self) -> None:
        """Asks again, now and then, for what deployments name: definitions of features change without an event."""
        while True:
            pending = self._cache.wanted() or set(self._cache.wanted_services()) - self._cache.services.keys()
            await asyncio.sleep(min(1.0, self._refresh_seconds) if pending else self._refresh_seconds)
            await self._complete()
            self._publish()
            await self._save()

    async def _complete(self) -> None:
        """Asks for manifests that are not known, and for feature services; what can't be had now is had later."""
        for ref in self._cache.wanted():
            await self._asked(f"model {ref}", partial(self._fetch_version, ref))
        names = self._cache.wanted_services()
        if names:
            await self._asked("feature services", partial(self._fetch_services, names))

    async def _fetch_version(self, ref: ModelRef) -> None:
        request = registry_pb2.GetModelVersionRequest(model=ref.model, version=ref.version)
        self._cache.add_version(await self._registry.GetModelVersion(request, timeout=_ASK_SECONDS))

    async def _fetch_services(self, names: list[str]) -> None:
        request = features_pb2.ListFeatureServicesRequest(names=names)
        try:
            found = await self._features.ListFeatureServices(request, timeout=_ASK_SECONDS)
        except NotFound:  # one that is not there must not hide the others
            found = await self._features.ListFeatureServices(
                features_pb2.ListFeatureServicesRequest(), timeout=_ASK_SECONDS
            )
        self._cache.services = {spec.name: spec for spec in found.services if spec.name in names}
        self._cache.views = {view.name: view for view in found.views}

    async def _asked(self, what: str, ask: Callable[[], Awaitable[None]]) -> None:
        try:
            await ask()
        except TreadleError as error:
            self._log.warning("cannot be asked for now; asking again later", what=what, error=error.message)

    def _publish(self) -> None:
        wanted = self._cache.snapshot(self._refused).deployments
        self._snapshot = Snapshot(self._gate.chosen(self._snapshot.deployments, wanted))
        for deployment in wanted.values():
            self._hide(deployment.sensitive_columns or frozenset())

    def _refused(self, what: str, error: TreadleError) -> None:
        self._log.error("cannot be served as it is registered", what=what, error=error.message)

    async def _save(self) -> None:
        text = self._cache.to_json()
        async with self._saving:
            if text == self._saved:
                return
            try:
                await in_thread(partial(write_atomically, self._path, text.encode()))
            except OSError as error:
                self._log.error("the copy of the policies cannot be written", path=str(self._path), error=str(error))
            else:
                self._saved = text
