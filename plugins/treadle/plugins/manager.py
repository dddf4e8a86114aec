"""Finds plugins by entry point and hands out what they provide.

Asking for one thing imports the one plugin that owns its name. What is wrong with a plugin stays with it: it is
told by `info`, and raised to whoever asks for it.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import Distribution, EntryPoint, entry_points
from threading import RLock
from typing import Any, Literal, Self, TypeVar

from treadle.core.errors import AlreadyExists, NotFound
from treadle.plugins.backend import ModelBackend
from treadle.plugins.hookspecs import GROUP
from treadle.plugins.host import PluginError, Provided, host, missing_modules
from treadle.plugins.metrics import Metric
from treadle.plugins.stores import OnlineStoreKind

T = TypeVar("T")
State = Literal["ok", "blocked", "missing", "error"]


@dataclass(frozen=True)
class PluginInfo:
    """One line of `treadle plugins list`."""

    name: str
    distribution: str
    version: str
    provides: tuple[str, ...]
    """ "backend sklearn", …; empty unless the plugin could be imported."""
    state: State
    reason: str
    """What is wrong and what to do; empty when nothing is."""


@dataclass(frozen=True)
class _Found:
    """A plugin that is installed, not necessarily imported."""

    name: str
    load: Callable[[], Any]
    distribution: str = ""
    version: str = ""
    extra: bool = False
    """Whether its distribution has an extra of the same name."""
    clash: str = ""
    """The other distributions that claim the same name."""


class Plugins:
    """The plugins of one process. Safe to share between threads."""

    def __init__(self, found: Mapping[str, _Found], blocked: Iterable[str] = ()) -> None:
        self._found = dict(found)
        self._blocked = frozenset(blocked)
        self._hosted: dict[str, Provided | PluginError] = {}
        self._lock = RLock()

    @classmethod
    def load(
        cls,
        enabled: Sequence[str] | None = None,
        blocked: Sequence[str] = (),
        *,
        modules: Mapping[str, Any] | None = None,
        installed: Iterable[EntryPoint] | None = None,
    ) -> Self:
        """Finds what is installed, importing nothing.

        `enabled`: these plugins only; None means all. `blocked`: never these. `modules`: plugins at hand as modules
        (or any objects with hooks), by name. `installed`: instead of this environment's entry points.
        Raises NotFound for an enabled or blocked name that no plugin has, AlreadyExists for a module under the name of
        an installed plugin.
        """
        found = _discover(entry_points(group=GROUP) if installed is None else installed)
        for name, module in (modules or {}).items():
            if name in found:
                raise AlreadyExists(
                    f"plugin {name!r} is also installed by {found[name].distribution}; uninstall that one"
                )
            found[name] = _Found(name, partial(_same, module))
        for name in (*(enabled or ()), *blocked):
            if name not in found:
                raise NotFound(f"no plugin {name!r} is installed; installed: {_listed(found)}")
        if enabled is not None:
            found = {name: found[name] for name in enabled}
        return cls(found, blocked)

    def backend(self, name: str) -> ModelBackend:
        """Raises NotFound if there is none that works, with the cause and what to install."""
        return self._one(name, "model backend", lambda provided: provided.backends)

    def online_store(self, name: str) -> OnlineStoreKind:
        """Raises NotFound as `backend` does."""
        return self._one(name, "online store", lambda provided: provided.online_stores)

    def backends(self) -> list[ModelBackend]:
        """Every backend that works, by name. Imports every plugin."""
        return self._all(lambda provided: provided.backends)

    def metrics(self) -> dict[str, Metric]:
        """Every metric that works, by name. Imports every plugin."""
        return {metric.name: metric for metric in self._all(lambda provided: provided.metrics)}

    def info(self) -> list[PluginInfo]:
        """Every plugin with what it provides and how it is. Imports them all, but nothing heavy."""
        lines: list[PluginInfo] = []
        for found in self._sorted():
            state, reason, provided = self._state(found)
            lines.append(PluginInfo(found.name, found.distribution, found.version, provided.kinds, state, reason))
        return lines

    def provided(self, plugin: str) -> Provided:
        """All that one plugin provides. Raises NotFound as `backend` does."""
        if plugin not in self._found:
            raise NotFound(f"no plugin {plugin!r} is installed; installed: {_listed(self._found)}")
        state, reason, provided = self._state(self._found[plugin])
        if state != "ok":
            raise NotFound(f"plugin {plugin!r} cannot be used: {reason}")
        return provided

    def _one(self, name: str, kind: str, of: Callable[[Provided], Mapping[str, T]]) -> T:
        plugin = name if name in self._found else name.partition(".")[0]
        if plugin not in self._found:
            raise NotFound(f"no plugin gives the {kind} {name!r}; installed plugins: {_listed(self._found)}")
        things = of(self.provided(plugin))
        if name not in things:
            raise NotFound(f"plugin {plugin!r} has no {kind} {name!r}; it has: {_listed(things)}")
        return things[name]

    def _all(self, of: Callable[[Provided], Mapping[str, T]]) -> list[T]:
        things: list[T] = []
        for found in self._sorted():
            state, _, provided = self._state(found)
            if state == "ok":
                things.extend(of(provided).values())
        return things

    def _sorted(self) -> list[_Found]:
        return [found for _, found in sorted(self._found.items())]

    def _state(self, found: _Found) -> tuple[State, str, Provided]:
        """How a plugin is, what is wrong with it, and what it registered: nothing unless it could be imported."""
        if found.name in self._blocked:
            return "blocked", "it is on the list of blocked plugins", Provided()
        hosted = self._host(found)
        if isinstance(hosted, PluginError):
            return "error", str(hosted), Provided()
        missing = missing_modules(hosted)
        if missing:
            return "missing", f"{', '.join(missing)} not installed; {_install(found)}", hosted
        return "ok", "", hosted

    def _host(self, found: _Found) -> Provided | PluginError:
        with self._lock:
            if found.name not in self._hosted:
                try:
                    self._hosted[found.name] = _import(found)
                except PluginError as error:
                    self._hosted[found.name] = error
            return self._hosted[found.name]


def names_in(setting: str) -> list[str]:
    """The names in the text of a setting: separated by commas or spaces."""
    return setting.replace(",", " ").split()


def _discover(installed: Iterable[EntryPoint]) -> dict[str, _Found]:
    """Plugins by name; a name that several distributions claim belongs to none of them."""
    found: dict[str, _Found] = {}
    for point in installed:
        dist = point.dist
        here = _Found(point.name, point.load, *_identity(dist), extra=dist is not None and point.name in _extras(dist))
        other = found.get(point.name)
        if other is not None:
            owners = " and ".join(sorted({*other.clash.split(" and "), other.distribution, here.distribution} - {""}))
            here = _Found(point.name, point.load, here.distribution, here.version, clash=owners)
        found[point.name] = here
    return found


def _import(found: _Found) -> Provided:
    if found.clash:
        raise PluginError(f"{found.clash} both claim the name {found.name!r}; uninstall one of them")
    try:
        module = found.load()
    # A plugin may do anything while it is imported, leaving the process included.
    except (Exception, SystemExit) as error:
        hint = f"; {_install(found)}" if isinstance(error, ImportError) else ""
        raise PluginError(f"importing it raised {type(error).__name__}: {error}{hint}") from error
    return host(found.name, module)


def _same(module: Any) -> Any:
    return module


def _install(found: _Found) -> str:
    """What to type to get the missing parts."""
    if found.extra:
        return f"pip install '{found.distribution}[{found.name}]'"
    return f"install what {found.distribution or 'it'} needs: pip install --upgrade {found.distribution or '…'}"


def _identity(dist: Distribution | None) -> tuple[str, str]:
    return (dist.name, dist.version) if dist is not None else ("", "")


def _extras(dist: Distribution) -> list[str]:
    return dist.metadata.get_all("Provides-Extra") or []


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "none"
