"""Follows the deployments of the registry: all that there are, then every change, across restarts of either side.

What was deployed last stays in force while the registry is away and across restarts of this process; only the registry
takes it back. A copy on disk, replaced whole, holds the deployments, the cursor that they stand for, and what the
service keeps beside them.
"""

import asyncio
import json
from collections.abc import AsyncIterable, Awaitable, Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from google.protobuf import json_format
from structlog.typing import FilteringBoundLogger

from treadle.core.errors import DataLoss, OutOfRange, TreadleError
from treadle.core.files import read_if_there, write_atomically
from treadle.core.tasks import in_thread
from treadle.v1 import registry_pb2_grpc
from treadle.v1.registry_pb2 import Deployment, DeploymentEvent, WatchDeploymentsRequest

FIRST_RETRY_SECONDS = 0.1
LAST_RETRY_SECONDS = 2.0
_FORMAT = 1


class AttachedState(Protocol):
    """What a service keeps in the same file as the deployments, so that the two always fit together."""

    def to_dict(self) -> dict[str, Any]:
        """It as JSON: entries beside "format", "cursor" and "deployments"."""
        ...

    def load(self, kept: Mapping[str, Any]) -> None:
        """Takes over what `to_dict` gave. Raises any Exception, and changes nothing, where it cannot be read."""
        ...


class DeploymentFollower:
    """The deployments as they are known here.

    `restore` reads the copy on disk; `run` then follows the registry for ever. `changed` is awaited after each change,
    but not before everything that was missed has arrived: `deployments` never is a mixture of old and new. When it
    raises, `run` raises the same, and the change is told again by the next `run`.
    """

    def __init__(
        self,
        registry: "registry_pb2_grpc.RegistryServiceAsyncStub",
        file: Path,
        log: FilteringBoundLogger,
        attached: AttachedState,
        changed: Callable[[], Awaitable[None]],
        *,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._registry = registry
        self._file = file
        self._log = log
        self._attached = attached
        self._changed = changed
        self._sleep = sleep
        self._cursor = ""
        self._arriving: dict[str, Deployment] = {}
        self._live = False
        self._saving = asyncio.Lock()
        self._saved = b""
        self.deployments: Mapping[str, Deployment] = {}
        """By name; replaced, never changed."""
        self.caught_up = asyncio.Event()
        """Set once the registry has told everything that it had when it was first reached."""

    async def restore(self) -> None:
        """Starts from the copy on disk, if there is one. One that cannot be read is set aside as `NAME.broken`."""
        content = await asyncio.to_thread(read_if_there, self._file)
        if content is None:
            return
        try:
            self._load(content)
        except Exception as error:  # whatever is wrong with it, the registry will tell all of it again
            broken = self._file.with_suffix(".broken")
            self._file.replace(broken)
            self._log.error("the copy of the deployments is broken; set aside", path=str(broken), error=str(error))
        else:
            self._saved = content
            self._log.info("serving the last known deployments", deployments=len(self.deployments))

    async def run(self) -> None:
        """Follows the registry for ever, through its absences."""
        delay, away = FIRST_RETRY_SECONDS, False
        while True:
            try:
                async for event in self._watch():
                    await self._apply(event)
                    delay, away = FIRST_RETRY_SECONDS, False
            except OutOfRange:
                self._log.warning("the registry has another history; reading all deployments again")
                self._cursor = ""
            except TreadleError as error:
                if not away:
                    self._log.warning("the registry cannot be watched; serving what is known", error=error.message)
                away = True
            await self._sleep(delay)
            delay = min(delay * 2, LAST_RETRY_SECONDS)

    async def save(self) -> None:
        """Writes the copy on disk where it has changed. A disk that refuses is logged, and serving goes on: only a
        restart without the registry would miss the change."""
        async with self._saving:
            content = self._content()
            if content == self._saved:
                return
            try:
                await in_thread(partial(write_atomically, self._file, content))
            except OSError as error:
                self._log.error("the deployments cannot be saved", path=str(self._file), error=str(error))
            else:
                self._saved = content

    def _watch(self) -> AsyncIterable[DeploymentEvent]:
        # Without a cursor the registry tells all that there is: what it does not name is gone.
        self._arriving = dict(self.deployments) if self._cursor else {}
        self._live = False
        return self._registry.WatchDeployments(WatchDeploymentsRequest(cursor=self._cursor))

    async def _apply(self, event: DeploymentEvent) -> None:
        match event.WhichOneof("change"):
            case "applied":
                self._arriving[event.applied.name] = event.applied
            case "deleted":
                self._arriving.pop(event.deleted, None)
            case "caught_up":
                self._live = True
        if self._live:
            self.deployments = dict(self._arriving)
            await self._changed()
            self._cursor = event.cursor or self._cursor  # only now: a change that could not be applied comes again
            self.caught_up.set()
            await self.save()

    def _content(self) -> bytes:
        deployments = [_to_dict(self.deployments[name]) for name in sorted(self.deployments)]
        kept = {"format": _FORMAT, "cursor": self._cursor, "deployments": deployments, **self._attached.to_dict()}
        return json.dumps(kept, indent=1).encode()

    def _load(self, content: bytes) -> None:
        kept = json.loads(content)
        if kept["format"] != _FORMAT:
            raise DataLoss(f"its format is {kept['format']}, not {_FORMAT}")
        cursor = str(kept["cursor"])
        parsed = [json_format.ParseDict(each, Deployment(), ignore_unknown_fields=True) for each in kept["deployments"]]
        if not all(each.name for each in parsed):
            raise DataLoss("it holds a deployment without a name")
        self._attached.load(kept)
        self._cursor, self.deployments = cursor, {each.name: each for each in parsed}


def _to_dict(deployment: Deployment) -> dict[str, Any]:
    return json_format.MessageToDict(deployment, preserving_proto_field_name=True)
