"""Following deployments: whatever breaks and whenever, what is known here becomes what the registry has."""

import asyncio
import contextlib
import errno
import json
import tempfile
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from treadle.core.errors import OutOfRange, Unavailable
from treadle.core.files import write_atomically
from treadle.core.tasks import cancel_and_wait
from treadle.observability.telemetry.telemetry import Telemetry
from treadle.rpc.client import deployment_follower
from treadle.rpc.client.deployment_follower import FIRST_RETRY_SECONDS, LAST_RETRY_SECONDS, DeploymentFollower
from treadle.v1.registry_pb2 import Deployment, DeploymentEvent, WatchDeploymentsRequest

LOG = Telemetry.off().log


@dataclass(frozen=True)
class Apply:
    """A deployment gets a new revision."""

    name: str


@dataclass(frozen=True)
class Delete:
    """A deployment goes, if it is there."""

    name: str


@dataclass(frozen=True)
class Outage:
    """The stream breaks; meanwhile these changes happen. Later streams break too, each after so many events."""

    changes: tuple[Apply | Delete, ...] = ()
    breaks: tuple[int, ...] = ()
    forgets: bool = False
    """Whether the registry comes back with another history, so that old cursors are out of range."""


Step = Apply | Delete | Outage


@dataclass
class FakeRegistry:
    """Keeps the contract of WatchDeployments. Whenever a watcher has heard everything, the next step happens."""

    steps: list[Step] = field(default_factory=list)
    log: list[DeploymentEvent] = field(default_factory=list)
    """The changes of the present history, each with its cursor."""
    history: int = 0
    revision: int = 0
    states: list[Mapping[str, int]] = field(default_factory=lambda: [{}])
    """Revisions by name after each change, in every history."""
    breaks: list[int] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    """The cursor of each watch."""
    idle: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when no step is left and the watcher has taken everything."""

    async def WatchDeployments(self, request: WatchDeploymentsRequest) -> AsyncIterator[DeploymentEvent]:
        self.asked.append(request.cursor)
        missed = [*self._missed(request.cursor), DeploymentEvent(cursor=self.cursor, caught_up=True)]
        breaks = self.breaks.pop(0) if self.breaks else None
        for count, event in enumerate(missed):
            if count == breaks:
                raise Unavailable("the stream breaks")
            yield event
        while self.steps:
            step = self.steps.pop(0)
            if isinstance(step, Outage):
                self._break_down(step)
                raise Unavailable("the registry is away")
            self.change(step)
            yield self.log[-1]
        self.idle.set()
        await asyncio.Event().wait()

    @property
    def cursor(self) -> str:
        return f"{self.history}-{len(self.log)}"

    def change(self, step: Apply | Delete) -> None:
        self.revision += 1
        state = dict(self.states[-1])
        event = DeploymentEvent(cursor=f"{self.history}-{len(self.log) + 1}")
        if isinstance(step, Apply):
            event.applied.CopyFrom(Deployment(name=step.name, revision=self.revision))
            state[step.name] = self.revision
        else:
            event.deleted = step.name
            state.pop(step.name, None)
        self.log.append(event)
        self.states.append(state)

    def _break_down(self, outage: Outage) -> None:
        if outage.forgets:
            self.history += 1
            self.log = []
        for change in outage.changes:
            self.change(change)
        self.breaks.extend(outage.breaks)

    def _missed(self, cursor: str) -> Iterable[DeploymentEvent]:
        if not cursor:
            return [
                DeploymentEvent(cursor=self.cursor, applied=Deployment(name=name, revision=revision))
                for name, revision in self.states[-1].items()
            ]
        history, _, position = cursor.partition("-")
        if int(history) != self.history or int(position) > len(self.log):
            raise OutOfRange("not of this history")
        return self.log[int(position) :]


@dataclass
class Notes:
    """What a service keeps beside the deployments: here, the names that it was told."""

    names: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        return {"names": self.names}

    def load(self, kept: Mapping[str, Any]) -> None:
        self.names = list(kept["names"])


@dataclass
class Service:
    """A service that follows a registry with a copy in `file`."""

    registry: Any
    file: Path
    notes: Notes = field(default_factory=Notes)
    fails: Callable[[], bool] = lambda: False
    """Whether it fails to apply the change that it is told of now."""
    seen: list[Mapping[str, int]] = field(default_factory=list)
    """Revisions by name, each time that it was told."""
    slept: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.follower = DeploymentFollower(self.registry, self.file, LOG, self.notes, self._changed, sleep=self._sleep)

    async def _sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        await asyncio.sleep(0)

    async def _changed(self) -> None:
        self.seen.append(revisions(self.follower))
        if self.fails():
            raise RuntimeError("the change cannot be applied now")
        self.notes.names = sorted(self.follower.deployments)

    async def run(self) -> None:
        """As a background loop: started again when it fails."""
        while True:
            with contextlib.suppress(RuntimeError):
                await self.follower.run()

    async def until_idle(self) -> None:
        """Follows until the registry has no more to tell."""
        self.registry.idle.clear()
        task = asyncio.create_task(self.run())
        waiting = asyncio.create_task(self.registry.idle.wait())
        await asyncio.wait([task, waiting], return_when=asyncio.FIRST_COMPLETED)
        assert not task.done()
        await cancel_and_wait(task)


def revisions(follower: DeploymentFollower) -> dict[str, int]:
    return {name: deployment.revision for name, deployment in follower.deployments.items()}


names = st.sampled_from("abc")
changes = st.one_of(st.builds(Apply, names), st.builds(Delete, names))
outages = st.builds(
    Outage,
    changes=st.lists(changes, max_size=4).map(tuple),
    breaks=st.lists(st.integers(0, 4), max_size=3).map(tuple),
    forgets=st.booleans(),
)
sessions = st.lists(st.lists(st.one_of(changes, outages), max_size=8), min_size=1, max_size=3)


@settings(max_examples=60, deadline=None)
@given(sessions, st.lists(st.booleans(), max_size=6))
def test_whatever_happens_the_follower_ends_with_what_the_registry_has(
    sessions: list[list[Step]], failures: list[bool]
) -> None:
    """Each session is a run of the service: it starts from the copy of the one before. Steps of the registry go on
    while the service is told, and some of what it is told it fails to apply."""

    async def live() -> None:
        registry, to_fail = FakeRegistry(), list(failures)
        for steps in sessions:
            registry.steps = list(steps)
            service = Service(registry, Path(folder) / "copy.json", fails=lambda: bool(to_fail and to_fail.pop()))
            await service.follower.restore()
            assert not service.follower.deployments or revisions(service.follower) in registry.states
            await service.until_idle()
            assert revisions(service.follower) == registry.states[-1]
            assert service.notes.names == sorted(registry.states[-1])
            assert in_order(service.seen, registry.states)
            assert copied(service.file) == registry.states[-1]

    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(live())


def in_order(seen: Iterable[Mapping[str, int]], states: list[Mapping[str, int]]) -> bool:
    """Whether each was the whole state of the registry at some time, none before the one that was seen earlier."""
    position = 0
    for each in seen:
        while states[position] != each:
            position += 1
            if position == len(states):
                return False
    return True


def copied(file: Path) -> dict[str, int]:
    return {each["name"]: int(each["revision"]) for each in json.loads(file.read_bytes())["deployments"]}


@pytest.fixture
def registry() -> FakeRegistry:
    return FakeRegistry()


@pytest.fixture
def service(registry: FakeRegistry, tmp_path: Path) -> Service:
    return Service(registry, tmp_path / "home" / "copy.json")


async def test_a_deployment_that_a_new_history_does_not_name_is_gone(registry: FakeRegistry, service: Service) -> None:
    registry.steps = [Apply("old"), Outage(changes=(Apply("old"),), forgets=True)]
    await service.until_idle()
    assert revisions(service.follower) == {"old": 2}
    registry.steps = [Outage(changes=(Delete("old"), Apply("new")), forgets=True)]
    await service.until_idle()
    assert list(service.follower.deployments) == ["new"]


async def test_until_everything_missed_has_arrived_the_old_state_serves(
    registry: FakeRegistry, service: Service
) -> None:
    registry.steps = [Apply("a"), Apply("b"), Outage(changes=(Delete("a"), Apply("c")), breaks=(1, 2))]
    await service.until_idle()
    assert [sorted(each) for each in service.seen] == [[], ["a"], ["a", "b"], ["b", "c"]]


async def test_a_restart_begins_with_the_copy_and_asks_only_for_what_it_missed(
    registry: FakeRegistry, service: Service
) -> None:
    registry.steps = [Apply("a"), Apply("b")]
    await service.until_idle()
    again = Service(registry, service.file)
    await again.follower.restore()
    assert revisions(again.follower) == {"a": 1, "b": 2}
    assert again.notes.names == ["a", "b"]
    assert not again.follower.caught_up.is_set()
    registry.change(Apply("c"))
    await again.until_idle()
    assert again.seen == [{"a": 1, "b": 2, "c": 3}]
    assert registry.asked == ["", "0-2"]
    assert again.follower.caught_up.is_set()


async def test_a_change_that_could_not_be_applied_is_told_again(registry: FakeRegistry, service: Service) -> None:
    failures = [False, True]
    service.fails = lambda: bool(failures) and failures.pop(0)
    registry.steps = [Apply("a")]
    await service.until_idle()
    assert service.seen == [{}, {"a": 1}, {"a": 1}]
    assert copied(service.file) == {"a": 1}


async def test_delays_grow_up_to_a_bound_and_begin_anew_after_an_event(tmp_path: Path) -> None:
    registry = FakeRegistry(breaks=[0] * 8, steps=[Outage()])
    service = Service(registry, tmp_path / "copy.json")
    await service.until_idle()
    assert service.slept[:3] == [FIRST_RETRY_SECONDS, FIRST_RETRY_SECONDS * 2, FIRST_RETRY_SECONDS * 4]
    assert service.slept[6:] == [LAST_RETRY_SECONDS, LAST_RETRY_SECONDS, FIRST_RETRY_SECONDS]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"\xff\xfe{",
        b'{"format": 99, "cursor": "", "deployments": [], "names": []}',
        b'{"format": 1, "cursor": "", "deployments": {"a": ["m/1"]}, "names": []}',
        b'{"format": 1, "cursor": "0-7", "deployments": [{"name": "a"}]}',
    ],
)
async def test_a_copy_that_cannot_be_read_is_set_aside_whole(
    registry: FakeRegistry, service: Service, content: bytes
) -> None:
    service.file.parent.mkdir()
    service.file.write_bytes(content)
    await service.follower.restore()
    assert not service.follower.deployments
    assert service.file.with_suffix(".broken").read_bytes() == content
    registry.steps = [Apply("a")]
    await service.until_idle()
    assert copied(service.file) == {"a": 1}


async def test_a_full_disk_ends_nothing(
    registry: FakeRegistry, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_room(path: Path, content: bytes) -> None:
        raise OSError(errno.ENOSPC, "no room")

    registry.steps = [Apply("a"), Apply("b")]
    with monkeypatch.context() as patch:
        patch.setattr(deployment_follower, "write_atomically", no_room)
        await service.until_idle()
    assert sorted(service.follower.deployments) == ["a", "b"]
    assert not service.file.exists()
    await service.follower.save()
    assert copied(service.file) == {"a": 1, "b": 2}


async def test_what_the_disk_holds_already_is_not_written_again(
    registry: FakeRegistry, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry.steps = [Apply("a")]
    await service.until_idle()
    again = Service(registry, service.file)
    await again.follower.restore()
    written: list[Path] = []
    monkeypatch.setattr(deployment_follower, "write_atomically", lambda path, _: written.append(path))
    await again.until_idle()
    assert not written
    again.notes.names = ["other"]
    await again.follower.save()
    assert written == [service.file]


async def test_no_write_outlives_the_watch(
    registry: FakeRegistry, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, disk = threading.Event(), threading.Event()

    def write_slowly(path: Path, content: bytes) -> None:
        begun.set()
        disk.wait(20)
        write_atomically(path, content)

    monkeypatch.setattr(deployment_follower, "write_atomically", write_slowly)
    following = asyncio.create_task(service.follower.run())
    await asyncio.to_thread(begun.wait, 20)
    ending = asyncio.create_task(cancel_and_wait(following))
    await asyncio.wait([ending, asyncio.create_task(asyncio.to_thread(int))], return_when=asyncio.FIRST_COMPLETED)
    assert not ending.done()
    disk.set()
    await ending
    assert service.file.exists()
