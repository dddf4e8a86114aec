"""Follows the registry's deployments, and remembers the last word on disk.

What was desired stays desired while the registry is away, and across restarts. Only the registry takes it back.
"""

import asyncio
import json
from collections.abc import AsyncIterable, Awaitable, Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

from structlog.typing import FilteringBoundLogger

from treadle.core.errors import InvalidInput, OutOfRange, TreadleError
from treadle.core.files import read_if_there, write_atomically
from treadle.core.model_ref import ModelRef
from treadle.core.tasks import in_thread
from treadle.inference.models.repository import Repository
from treadle.rpc.client.channel import Channel
from treadle.v1 import registry_pb2, types_pb2
from treadle.v1.registry_pb2_grpc import RegistryServiceStub

FIRST_RETRY_SECONDS = 0.1
LAST_RETRY_SECONDS = 2.0


@dataclass(slots=True)
class DesiredState:
    """What is kept on disk."""

    cursor: str = ""
    deployments: dict[str, list[str]] = field(default_factory=dict)
    """Versions ("name/3") by the deployment that asks for them."""
    pinned: list[str] = field(default_factory=list)


class DesiredStateFollower:
    """Tells the repository what deployments ask for."""

    def __init__(
        self,
        channel: Channel,
        repository: Repository,
        path: Path,
        log: FilteringBoundLogger,
        *,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._channel = channel
        self._repository = repository
        self._path = path
        self._log = log
        self._sleep = sleep
        self._known = DesiredState()
        self._snapshot: dict[str, list[str]] | None = None
        """Deployments seen since a watch began without a cursor; they replace the known ones when it has caught up."""
        self._saving = asyncio.Lock()

    def restore(self) -> None:
        """Starts with what was desired when this process last ran."""
        content = read_if_there(self._path)
        if content is None:
            return
        try:
            self._known = DesiredState(**json.loads(content))
            pinned = [ModelRef.parse(text) for text in self._known.pinned]
            self._tell()
        except (ValueError, TypeError, InvalidInput) as error:
            # The registry will tell all of it again.
            self._log.warning("the remembered deployments cannot be read", path=str(self._path), error=str(error))
            self._known = DesiredState()
        else:
            self._repository.pin(pinned)

    async def save_pins(self) -> None:
        """Remembers what is pinned now."""
        self._known.pinned = [str(key) for key in sorted(self._repository.pinned)]
        await self._save()

    async def follow(self) -> None:
        """Watches for ever; comes back by itself when the registry does."""
        delay = FIRST_RETRY_SECONDS
        while True:
            try:
                async for event in self._watch():
                    await self._apply(event)
                    delay = FIRST_RETRY_SECONDS
            except OutOfRange:
                self._log.warning("the registry has another history; starting again from its present state")
                self._known.cursor = ""
            except TreadleError as error:
                self._log.info("deployments cannot be watched", reason=error.message, retry_seconds=delay)
            except Exception as error:
                # Whatever it is, one bad event must not end the watching of all later ones.
                self._log.error("watching deployments failed", exc_info=error)
            await self._sleep(delay)
            delay = min(delay * 2, LAST_RETRY_SECONDS)

    def _watch(self) -> AsyncIterable[registry_pb2.DeploymentEvent]:
        self._snapshot = None if self._known.cursor else {}
        request = registry_pb2.WatchDeploymentsRequest(cursor=self._known.cursor)
        return RegistryServiceStub(self._channel).WatchDeployments(request)

    async def _apply(self, event: registry_pb2.DeploymentEvent) -> None:
        target = self._known.deployments if self._snapshot is None else self._snapshot
        match event.WhichOneof("change"):
            case "applied":
                target[event.applied.name] = [str(key) for key in sorted(self._wanted(event.applied))]
            case "deleted":
                target.pop(event.deleted, None)
            case "caught_up" if self._snapshot is not None:
                self._known.deployments, self._snapshot = self._snapshot, None
        if self._snapshot is None:
            self._known.cursor = event.cursor or self._known.cursor
            self._tell()
            await self._save()

    def _wanted(self, deployment: registry_pb2.Deployment) -> set[ModelRef]:
        wanted: set[ModelRef] = set()
        for ref in _refs(deployment):
            try:
                wanted.add(ModelRef.checked(ref.model, ref.version))
            except InvalidInput as error:
                self._log.warning(
                    "a deployment names no model version", deployment=deployment.name, error=error.message
                )
        return wanted

    def _tell(self) -> None:
        self._repository.set_desired(
            ModelRef.parse(text) for wanted in self._known.deployments.values() for text in wanted
        )

    async def _save(self) -> None:
        """On a thread: requests must not wait for the disk."""
        async with self._saving:
            content = json.dumps(asdict(self._known), indent=1).encode()
            try:
                await in_thread(partial(_write, self._path, content))
            except OSError as error:
                # Serving goes on; only a restart without the registry would miss it.
                self._log.error("the desired state cannot be remembered", path=str(self._path), error=str(error))


def _write(path: Path, content: bytes) -> None:
    if read_if_there(path) != content:  # a watch that begins anew mostly tells what is known
        write_atomically(path, content)


def _refs(deployment: registry_pb2.Deployment) -> list[types_pb2.ModelRef]:
    """Every version that a deployment may call."""
    fallbacks = [step.ref for step in deployment.fallbacks if step.WhichOneof("answer") == "ref"]
    return [*(share.ref for share in deployment.traffic), *deployment.shadows, *fallbacks]
