"""The model versions of this process and their lifecycle.

    (needed) → LOADING → READY → (lingers) → UNLOADING → (gone)
                  ↓  ↑      ↓
               UNAVAILABLE (with the reason)

A version is needed while a deployment names it or a caller has pinned it. A load that fails for a transient reason (the
registry cannot be reached, the disk is full) is retried; a version that hangs stays UNAVAILABLE until it is reloaded.

A version that no deployment names any more lingers: it stays READY until the versions that replace it are READY, and
some seconds more, because gateways learn of the change at different times. So a swap fails no request.
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
from treadle.inference.api.admission import ModelLimits
from treadle.inference.api.infer_codec import InferCodec
from treadle.inference.batching.batcher import Batcher, BatchListener
from treadle.inference.batching.metrics import ModelObserver
from treadle.inference.batching.model_thread import ModelThread
from treadle.inference.models.entry import ModelEntry, ModelState, ServedModel
from treadle.inference.models.memory import trim_allocator
from treadle.inference.models.models import RegisteredVersion
from treadle.plugins.checked import CheckedModel

Describe = Callable[[ModelRef], Awaitable[RegisteredVersion]]
Load = Callable[[RegisteredVersion, ModelThread], Awaitable[CheckedModel]]
FIRST_RETRY_SECONDS = 0.5
LAST_RETRY_SECONDS = 30.0
CLOSE_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class RepositoryDependencies:
    """Functions and settings that the repository uses."""

    describe: Describe
    load: Load
    discard: Callable[[RegisteredVersion], Awaitable[None]]
    observer: Callable[[ModelRef], ModelObserver]
    announce: Callable[[str, bool], Awaitable[None]]
    """Sets the health status of "model/NAME/VERSION" and "model/NAME"."""
    limits: ModelLimits
    log: FilteringBoundLogger
    parallel_loads: int = 2
    linger_seconds: float = 10.0


class Repository:
    """The versions of this process. Created and used on one event loop."""

    def __init__(
        self, dependencies: RepositoryDependencies, *, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    ) -> None:
        self._dependencies = dependencies
        self._sleep = sleep
        self._entries: dict[ModelRef, ModelEntry] = {}
        self._desired: frozenset[ModelRef] = frozenset()
        self._pinned: frozenset[ModelRef] = frozenset()
        self._resolved: dict[tuple[str, str], ServedModel] = {}
        """Loaded models by (name, version) of requests; cleared whenever a version changes its state."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._load_slots = asyncio.Semaphore(dependencies.parallel_loads)
        self._closing = False
        self._state_changed = asyncio.Event()
        """Set, and replaced, whenever a version changes its state."""

    @property
    def entries(self) -> list[ModelEntry]:
        """All entries, sorted by name and version."""
        return [self._entries[key] for key in sorted(self._entries)]

    @property
    def pinned(self) -> frozenset[ModelRef]:
        """Versions that callers have pinned."""
        return self._pinned

    @property
    def desired(self) -> frozenset[ModelRef]:
        """Versions that deployments name."""
        return self._desired

    def set_desired(self, keys: Iterable[ModelRef]) -> None:
        """Sets the versions that deployments name; loads new ones, later unloads unneeded ones."""
        self._desired = frozenset(keys)
        self._resolved.clear()
        self._reconcile()

    def pin(self, keys: Iterable[ModelRef]) -> None:
        """Loads versions, and keeps them until `unpin`."""
        self._pinned |= frozenset(keys)
        self._reconcile()

    def unpin(self, keys: Iterable[ModelRef]) -> None:
        """Unpins versions and unloads them at once, except those that deployments name."""
        keys = frozenset(keys)
        self._pinned -= keys
        for key in keys - self._desired:
            if key in self._entries:
                self._unload(self._entries[key])
        self._reconcile()

    async def wait_until_loaded(self, key: ModelRef) -> None:
        """Waits until a pinned or desired version is READY; raises its error if it fails to load. An UNAVAILABLE
        version is loaded again first."""
        entry = self._entries[key]
        if entry.state is ModelState.UNAVAILABLE:
            await self._stop(entry)
            self._reconcile()
            entry = self._entries[key]
        await entry.load_attempted.wait()
        if entry.error is not None:
            raise type(entry.error)(f"model {key} cannot be loaded: {entry.error.message}", entry.error.violations)

    async def wait_until_unloaded(self, keys: Iterable[ModelRef]) -> None:
        """Waits until the versions are unloaded."""
        tasks = [entry.task for key in keys if (entry := self._entries.get(key)) and entry.task]
        await asyncio.gather(*tasks, return_exceptions=True)

    def find(self, name: str, version: str = "") -> ModelEntry:
        """The entry for a request. Without a version: the highest READY one that deployments name, else the highest
        READY one, else the highest. NotFound if there is none."""
        if version:
            entry = self._entries.get(_parse_key(name, version))
            if entry is None:
                raise NotFound(f"model {name!r} version {version[:32]!r} is not here; deploy it, or load it")
            return entry
        found = [entry for entry in self._entries.values() if entry.key.model == name]
        if not found:
            raise NotFound(f"model {name[:128]!r} is not here; deploy it, or load it")
        return max(found, key=lambda e: (e.state is ModelState.READY, e.key in self._desired, e.key.version))

    def served_model(self, name: str, version: str = "") -> ServedModel:
        """The loaded model for a request. Unavailable, with the state, if it is not READY."""
        served = self._resolved.get((name, version))
        if served is not None:
            return served
        entry = self.find(name, version)
        if entry.served is None or entry.state is not ModelState.READY:
            why = f": {entry.reason}" if entry.reason else ""
            raise Unavailable(f"model {entry.key} is {entry.state}{why}")
        self._resolved[name, version] = entry.served
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
                entry = self._entries[key] = ModelEntry(key)
                entry.task = self._start(self._load(entry))
        for entry in self.entries:
            if entry.key in needed:
                _cancel(entry.linger_task)
                entry.linger_task = None
            elif entry.state is not ModelState.READY:
                self._unload(entry)
            elif entry.linger_task is None:
                entry.linger_task = self._start(self._linger(entry))

    async def _linger(self, entry: ModelEntry) -> None:
        while any(self._is_pending(key, entry.key.model) for key in self._desired):
            await self._state_changed.wait()
        await self._sleep(self._dependencies.linger_seconds)
        self._unload(entry)

    def _is_pending(self, key: ModelRef, name: str) -> bool:
        entry = self._entries.get(key)
        return key.model == name and (entry is None or entry.state is not ModelState.READY)

    def _set_state(self, entry: ModelEntry, state: ModelState) -> None:
        entry.state = state
        self._resolved.clear()
        self._state_changed.set()
        self._state_changed = asyncio.Event()

    def _unload(self, entry: ModelEntry) -> None:
        if entry.state is not ModelState.UNLOADING:
            loading = entry.task
            if entry.linger_task is not asyncio.current_task():
                _cancel(entry.linger_task)
            self._set_state(entry, ModelState.UNLOADING)
            entry.task = self._start(self._finish_unload(entry, loading))

    async def _stop(self, entry: ModelEntry) -> None:
        self._unload(entry)
        if entry.task is not None:
            await entry.task

    def _start(self, work: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        # In a new context, so that the task does not inherit deadline and trace of the call that caused it.
        task = asyncio.get_running_loop().create_task(work, context=contextvars.Context())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _load(self, entry: ModelEntry) -> None:
        delay = FIRST_RETRY_SECONDS
        while True:
            try:
                entry.served = await self._serve(entry)
            except TreadleError as raised:
                error = raised
            except Exception as raised:
                self._dependencies.log.error("a model could not be loaded", model=str(entry.key), exc_info=raised)
                error = Internal(f"loading raised {type(raised).__name__}; see the log")
            else:
                entry.error = None
                self._set_state(entry, ModelState.READY)
                await self._announce(entry.key)
                self._dependencies.log.info("model ready", model=entry.key.model, version=entry.key.version)
                entry.load_attempted.set()
                return
            await self._mark_unavailable(entry, error)
            entry.load_attempted.set()
            if not (error.retryable or isinstance(error, StorageFull)):
                return
            await self._sleep(delay)
            delay = min(delay * 2, LAST_RETRY_SECONDS)
            self._set_state(entry, ModelState.LOADING)

    async def _serve(self, entry: ModelEntry) -> ServedModel:
        registered = entry.registered = await self._dependencies.describe(entry.key)
        thread = ModelThread(f"model-{entry.key}")
        try:
            async with self._load_slots:
                model = await self._dependencies.load(registered, thread)
        except BaseException:
            thread.stop()
            raise
        observer = self._dependencies.observer(entry.key)
        batcher = Batcher(
            str(entry.key),
            model.predict,
            thread,
            self._dependencies.limits,
            BatchListener(observer.around_batch, observer.batch_completed, lambda reason: self._on_hang(entry, reason)),
            bounded=model.model.bounded,
        )
        return ServedModel(
            registered, model, batcher, observer, thread, InferCodec(registered, self._dependencies.limits.max_rows)
        )

    async def _mark_unavailable(self, entry: ModelEntry, error: TreadleError) -> None:
        entry.error = error
        self._set_state(entry, ModelState.UNAVAILABLE)
        self._dependencies.log.warning("model unavailable", model=str(entry.key), reason=entry.reason)
        await self._announce(entry.key)

    def _on_hang(self, entry: ModelEntry, reason: str) -> None:
        served, entry.served = entry.served, None
        self._resolved.clear()
        if served is not None:
            served.thread.stop()
        entry.task = self._start(self._mark_unavailable(entry, Unavailable(reason)))

    async def _finish_unload(self, entry: ModelEntry, loading: "asyncio.Task[None] | None") -> None:
        if loading is not None:
            loading.cancel()
            await asyncio.gather(loading, return_exceptions=True)
        self._set_state(entry, ModelState.UNLOADING)  # the load may have succeeded meanwhile
        await self._announce(entry.key)
        served = entry.served
        if served is not None:
            await served.batcher.drain()
            await self._close_model(served)
        if entry.registered is not None:  # also if it failed to load, or hung
            await self._dependencies.discard(entry.registered)
        entry.served = served = None
        await asyncio.to_thread(trim_allocator)
        entry.load_attempted.set()
        del self._entries[entry.key]
        await self._announce(entry.key)
        self._dependencies.log.info("model unloaded", model=entry.key.model, version=entry.key.version)
        self._reconcile()

    async def _close_model(self, served: ServedModel) -> None:
        try:
            await asyncio.wait_for(served.thread.call(served.model.close), CLOSE_SECONDS)
        except Exception as error:
            key = str(served.registered.key)
            self._dependencies.log.warning("closing a model failed", model=key, error=type(error).__name__)
        served.thread.stop()
        served.observer.flush()

    async def _announce(self, key: ModelRef) -> None:
        """Sets the health of the version and of the model, which serves if any of its versions does."""
        ready = [e.key for e in self._entries.values() if e.state is ModelState.READY and e.key.model == key.model]
        await self._dependencies.announce(f"model/{key}", key in ready)
        await self._dependencies.announce(f"model/{key.model}", bool(ready))


def _cancel(task: "asyncio.Task[None] | None") -> None:
    if task is not None:
        task.cancel()


def _parse_key(name: str, version: str) -> ModelRef:
    if not (version.isascii() and version.isdigit()):
        raise InvalidInput(f"{version[:32]!r} is no version; versions are numbers from 1")
    try:
        return ModelRef.checked(name, whole_number(version) or 0)
    except InvalidInput:
        raise NotFound(f"model {name[:128]!r} version {version[:32]!r} is not here; deploy it, or load it") from None
