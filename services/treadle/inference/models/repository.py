"""Which model versions are here, and in what state.

    (needed) → LOADING → READY → (lingers) → UNLOADING → (gone)
                  ↓  ↑      ↓
               UNAVAILABLE (with the reason)

A version is needed while a deployment asks for it or somebody has pinned it. One that could not be loaded for a reason
that may pass (the registry cannot be reached, the disk is full) is tried again; one that hangs stays UNAVAILABLE until
it is loaded anew.

A version that deployments let go of lingers: it stays READY until the versions of its model that took its place are
READY, and some seconds more, for callers learn of the change at moments of their own. So a swap fails no request.
"""

import asyncio
import contextvars
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from dataclasses import dataclass
from typing import Any

from structlog.typing import FilteringBoundLogger

from treadle.core.errors import Internal, InvalidInput, NotFound, StorageFull, TreadleError, Unavailable
from treadle.core.model_ref import ModelRef
from treadle.core.numbers import whole_number
from treadle.inference.api.admission import Limits
from treadle.inference.api.infer_codec import Wire
from treadle.inference.batching.batcher import Batcher, Watching
from treadle.inference.batching.metrics import ModelObserver
from treadle.inference.batching.worker import Worker
from treadle.inference.models.entry import Entry, Served, State
from treadle.inference.models.memory import give_back
from treadle.inference.models.models import Registered
from treadle.plugins.checked import CheckedModel

Describe = Callable[[ModelRef], Awaitable[Registered]]
Load = Callable[[Registered, Worker], Awaitable[CheckedModel]]
FIRST_RETRY_SECONDS = 0.5
LAST_RETRY_SECONDS = 30.0
CLOSE_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Tools:
    """What the repository works with."""

    describe: Describe
    load: Load
    discard: Callable[[Registered], Awaitable[None]]
    observer: Callable[[ModelRef], ModelObserver]
    announce: Callable[[str, bool], Awaitable[None]]
    """Tells health whether "model/NAME/VERSION" serves."""
    limits: Limits
    log: FilteringBoundLogger
    parallel_loads: int = 2
    linger_seconds: float = 10.0


class Repository:
    """The versions of this process. Lives on one event loop."""

    def __init__(self, tools: Tools, *, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep) -> None:
        self._tools = tools
        self._sleep = sleep
        self._entries: dict[ModelRef, Entry] = {}
        self._desired: frozenset[ModelRef] = frozenset()
        self._pinned: frozenset[ModelRef] = frozenset()
        self._found: dict[tuple[str, str], Served] = {}
        """What requests have meant since something last changed."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._loads = asyncio.Semaphore(tools.parallel_loads)
        self._closing = False
        self._turned = asyncio.Event()
        """Set, and replaced, whenever a version changes its state."""

    @property
    def entries(self) -> list[Entry]:
        """All of them, by name and version."""
        return [self._entries[key] for key in sorted(self._entries)]

    @property
    def pinned(self) -> frozenset[ModelRef]:
        """Versions kept because somebody asked for them by name."""
        return self._pinned

    @property
    def desired(self) -> frozenset[ModelRef]:
        """Versions that deployments ask for."""
        return self._desired

    def set_desired(self, keys: Iterable[ModelRef]) -> None:
        """Makes these the versions that deployments ask for: loads what is new, later unloads what nobody needs."""
        self._desired = frozenset(keys)
        self._found.clear()
        self._reconcile()

    def pin(self, keys: Iterable[ModelRef]) -> None:
        """Keeps these until `unpin`."""
        self._pinned |= frozenset(keys)
        self._reconcile()

    def unpin(self, keys: Iterable[ModelRef]) -> None:
        """Unloads these at once; versions that deployments ask for stay."""
        keys = frozenset(keys)
        self._pinned -= keys
        for key in keys - self._desired:
            if key in self._entries:
                self._unload(self._entries[key])
        self._reconcile()

    async def loaded(self, key: ModelRef) -> None:
        """Returns once the pinned or desired version is READY; raises what kept it from being so. One that was
        UNAVAILABLE is loaded anew first."""
        entry = self._entries[key]
        if entry.state is State.UNAVAILABLE:
            await self._stop(entry)
            self._reconcile()
            entry = self._entries[key]
        await entry.settled.wait()
        if entry.error is not None:
            raise type(entry.error)(f"model {key} cannot be loaded: {entry.error.message}", entry.error.violations)

    async def gone(self, keys: Iterable[ModelRef]) -> None:
        """Waits until these are no longer here."""
        tasks = [entry.task for key in keys if (entry := self._entries.get(key)) and entry.task]
        await asyncio.gather(*tasks, return_exceptions=True)

    def find(self, name: str, version: str = "") -> Entry:
        """The entry that a request means. Without a version: the highest READY one that deployments ask for, else the
        highest READY one, else the highest. NotFound if it is not here."""
        if version:
            entry = self._entries.get(_key(name, version))
            if entry is None:
                raise NotFound(f"model {name!r} version {version[:32]!r} is not here; deploy it, or load it")
            return entry
        found = [entry for entry in self._entries.values() if entry.key.model == name]
        if not found:
            raise NotFound(f"model {name[:128]!r} is not here; deploy it, or load it")
        return max(found, key=lambda e: (e.state is State.READY, e.key in self._desired, e.key.version))

    def serving(self, name: str, version: str = "") -> Served:
        """What runs the requests for a model. Unavailable, with the state, if it is not READY."""
        served = self._found.get((name, version))
        if served is not None:
            return served
        entry = self.find(name, version)
        if entry.served is None or entry.state is not State.READY:
            why = f": {entry.reason}" if entry.reason else ""
            raise Unavailable(f"model {entry.key} is {entry.state}{why}")
        self._found[name, version] = entry.served
        return entry.served

    async def close(self) -> None:
        """Unloads everything."""
        self._closing = True
        self._desired = self._pinned = frozenset()
        for entry in self.entries:
            self._unload(entry)
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _reconcile(self) -> None:
        needed = self._desired | self._pinned
        for key in sorted(needed - self._entries.keys()):
            if not self._closing:
                entry = self._entries[key] = Entry(key)
                entry.task = self._start(self._load(entry))
        for entry in self.entries:
            if entry.key in needed:
                _cancel(entry.lingering)
                entry.lingering = None
            elif entry.state is not State.READY:
                self._unload(entry)
            elif entry.lingering is None:
                entry.lingering = self._start(self._linger(entry))

    async def _linger(self, entry: Entry) -> None:
        while any(self._awaited(key, entry.key.model) for key in self._desired):
            await self._turned.wait()
        await self._sleep(self._tools.linger_seconds)
        self._unload(entry)

    def _awaited(self, key: ModelRef, name: str) -> bool:
        entry = self._entries.get(key)
        return key.model == name and (entry is None or entry.state is not State.READY)

    def _turn(self, entry: Entry, state: State) -> None:
        entry.state = state
        self._found.clear()
        self._turned.set()
        self._turned = asyncio.Event()

    def _unload(self, entry: Entry) -> None:
        if entry.state is not State.UNLOADING:
            loading = entry.task
            if entry.lingering is not asyncio.current_task():
                _cancel(entry.lingering)
            self._turn(entry, State.UNLOADING)
            entry.task = self._start(self._leave(entry, loading))

    async def _stop(self, entry: Entry) -> None:
        self._unload(entry)
        if entry.task is not None:
            await entry.task

    def _start(self, work: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        # In a context of its own: the call that caused it must not lend it its deadline or its trace.
        task = asyncio.get_running_loop().create_task(work, context=contextvars.Context())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _load(self, entry: Entry) -> None:
        delay = FIRST_RETRY_SECONDS
        while True:
            try:
                entry.served = await self._serve(entry)
            except TreadleError as raised:
                error = raised
            except Exception as raised:
                self._tools.log.error("a model could not be loaded", model=str(entry.key), exc_info=raised)
                error = Internal(f"loading raised {type(raised).__name__}; the log tells more")
            else:
                entry.error = None
                self._turn(entry, State.READY)
                await self._announce(entry.key)
                self._tools.log.info("model ready", model=entry.key.model, version=entry.key.version)
                entry.settled.set()
                return
            await self._fail(entry, error)
            entry.settled.set()
            if not (error.retryable or isinstance(error, StorageFull)):
                return
            await self._sleep(delay)
            delay = min(delay * 2, LAST_RETRY_SECONDS)
            self._turn(entry, State.LOADING)

    async def _serve(self, entry: Entry) -> Served:
        registered = entry.registered = await self._tools.describe(entry.key)
        worker = Worker(f"model-{entry.key}")
        try:
            async with self._loads:
                model = await self._tools.load(registered, worker)
        except BaseException:
            worker.stop()
            raise
        observer = self._tools.observer(entry.key)
        batcher = Batcher(
            str(entry.key),
            model.predict,
            worker,
            self._tools.limits,
            Watching(observer.batch, observer.answered, lambda reason: self._hangs(entry, reason)),
            bounded=model.model.bounded,
        )
        return Served(registered, model, batcher, observer, worker, Wire(registered, self._tools.limits.max_rows))

    async def _fail(self, entry: Entry, error: TreadleError) -> None:
        entry.error = error
        self._turn(entry, State.UNAVAILABLE)
        self._tools.log.warning("model unavailable", model=str(entry.key), reason=entry.reason)
        await self._announce(entry.key)

    def _hangs(self, entry: Entry, reason: str) -> None:
        served, entry.served = entry.served, None
        self._found.clear()
        if served is not None:
            served.worker.stop()
        entry.task = self._start(self._fail(entry, Unavailable(reason)))

    async def _leave(self, entry: Entry, loading: "asyncio.Task[None] | None") -> None:
        if loading is not None:
            loading.cancel()
            await asyncio.gather(loading, return_exceptions=True)
        self._turn(entry, State.UNLOADING)  # the load may have ended well at the same moment
        await self._announce(entry.key)
        served = entry.served
        if served is not None:
            await served.batcher.drain()
            await self._free(served)
        if entry.registered is not None:  # also where it failed to load, or hung
            await self._tools.discard(entry.registered)
        entry.served = served = None
        await asyncio.to_thread(give_back)
        entry.settled.set()
        del self._entries[entry.key]
        await self._announce(entry.key)
        self._tools.log.info("model unloaded", model=entry.key.model, version=entry.key.version)
        self._reconcile()

    async def _free(self, served: Served) -> None:
        try:
            await asyncio.wait_for(served.worker.call(served.model.close), CLOSE_SECONDS)
        except Exception as error:
            key = str(served.registered.key)
            self._tools.log.warning("closing a model failed", model=key, error=type(error).__name__)
        served.worker.stop()
        served.observer.tell()

    async def _announce(self, key: ModelRef) -> None:
        """Health of the version, and of the model: it serves if any version of it does."""
        ready = [e.key for e in self._entries.values() if e.state is State.READY and e.key.model == key.model]
        await self._tools.announce(f"model/{key}", key in ready)
        await self._tools.announce(f"model/{key.model}", bool(ready))


def _cancel(task: "asyncio.Task[None] | None") -> None:
    if task is not None:
        task.cancel()


def _key(name: str, version: str) -> ModelRef:
    if not (version.isascii() and version.isdigit()):
        raise InvalidInput(f"{version[:32]!r} is no version; versions are numbers from 1")
    try:
        return ModelRef.checked(name, whole_number(version) or 0)
    except InvalidInput:
        raise NotFound(f"model {name[:128]!r} version {version[:32]!r} is not here; deploy it, or load it") from None
