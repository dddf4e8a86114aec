"""Deployments as they change: a snapshot, then every change, for ever.

Nothing is queued: each watcher reads the database from where it stands, at its own pace, so that a slow one costs
writers nothing. A cursor is the registry's id and a history sequence number, so it outlives both ends.
"""

import asyncio
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

from treadle.core.errors import OutOfRange, Unavailable
from treadle.core.tasks import notify
from treadle.registry import deployments
from treadle.registry.deployments import DeploymentChange, DeploymentRevision
from treadle.registry.store import RegistryStore, newest_sequence

_CURSOR = re.compile(r"([0-9a-f]{32})-([0-9]{1,18})")
_BATCH = 100


@dataclass(frozen=True, slots=True)
class Applied:
    """A deployment is now this."""

    cursor: str
    deployment: DeploymentRevision


@dataclass(frozen=True, slots=True)
class Deleted:
    """A deployment is gone."""

    cursor: str
    name: str


@dataclass(frozen=True, slots=True)
class CaughtUp:
    """All that had happened when the watch began has been told."""

    cursor: str


Event: TypeAlias = Applied | Deleted | CaughtUp


class Watches:
    """Wakes watchers when there is something new. `poll` notices the writes of other processes."""

    def __init__(self, store: RegistryStore) -> None:
        self._store = store
        self._newest = 0
        self._moved = asyncio.Event()
        self._closed = False
        self._watchers = 0

    @contextmanager
    def open(self) -> Iterator[None]:
        """While this is open, watchers hear of commits of this process; afterwards none is left waiting."""
        loop = asyncio.get_running_loop()

        def committed(sequence: int) -> None:
            notify(loop, lambda: self._advance(sequence))

        self._store.on_commit(committed)
        try:
            yield
        finally:
            self.close()

    def close(self) -> None:
        """Ends every watch, with an error that tells its client to come back with its cursor."""
        self._closed = True
        self._moved.set()

    async def events(self, cursor: str) -> AsyncIterator[Event]:
        """For ever. OutOfRange for a cursor that is not of this history; Unavailable once this is closed."""
        self._watchers += 1
        try:
            if cursor:
                position, end = await self._span(cursor)
                async for event in self._replayed(position, end):
                    yield event
            else:
                changes, end = await self._store.read(deployments.snapshot)
                async for event in self._to_events(changes):
                    yield event
            yield CaughtUp(self._cursor(end))
            while True:
                position, end = end, await self._beyond(end)
                async for event in self._replayed(position, end):
                    yield event
        finally:
            self._watchers -= 1

    async def _replayed(self, position: int, end: int) -> AsyncIterator[Event]:
        """Every change after `position` up to `end`."""
        while position < end:
            read = partial(deployments.changes_between, after=position, until=end, limit=_BATCH)
            changes = await self._store.read(read)
            async for event in self._to_events(changes):
                yield event
            position = changes[-1].sequence if len(changes) == _BATCH else end

    async def _to_events(self, changes: list[DeploymentChange]) -> AsyncIterator[Event]:
        """Events for these changes. Revisions never change, so they may be read piece by piece."""
        for start in range(0, len(changes), _BATCH):
            part = changes[start : start + _BATCH]
            wanted = [(change.name, change.revision) for change in part if change.revision is not None]
            found = iter(await self._store.read(partial(deployments.revisions, wanted=wanted)))
            for change in part:
                self._check_open()
                cursor = self._cursor(change.sequence)
                yield Deleted(cursor, change.name) if change.revision is None else Applied(cursor, next(found))

    async def _span(self, cursor: str) -> tuple[int, int]:
        """Where a cursor stands, and where the history ends now."""
        match = _CURSOR.fullmatch(cursor)
        if match is None or match[1] != self._store.registry_id:
            raise OutOfRange("the cursor is not of this registry's history: watch again without a cursor")
        position, end = int(match[2]), await self._store.read(newest_sequence)
        if position > end:
            raise OutOfRange("the cursor is ahead of this registry's history: watch again without a cursor")
        return position, end

    def _cursor(self, sequence: int) -> str:
        return f"{self._store.registry_id}-{sequence}"

    async def _beyond(self, position: int) -> int:
        """Waits until the history has grown beyond `position`; returns its end."""
        while True:
            moved = self._moved
            self._check_open()
            if self._newest > position:
                return self._newest
            await moved.wait()

    def _check_open(self) -> None:
        if self._closed:
            raise Unavailable("the registry is shutting down: watch again with the last cursor")

    def _advance(self, sequence: int) -> None:
        if sequence > self._newest and not self._closed:
            self._newest = sequence
            self._moved.set()
            self._moved = asyncio.Event()

    async def poll(self) -> None:
        """Notices what other registry processes wrote to the same database."""
        if self._watchers:
            self._advance(await self._store.read(newest_sequence))
