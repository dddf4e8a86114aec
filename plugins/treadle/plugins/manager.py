"""`Plugins`: finds plugins by entry point and returns the objects that they provide.

A look-up imports only the plugin that owns the name. An error of a plugin does not affect others: `info` shows it, and
a look-up of that plugin raises it.
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
    """Why the plugin cannot be used and what to do; empty if it can."""


@dataclass(frozen=True)
class _InstalledPlugin:
    """An installed plugin, which may not be imported yet."""

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

    def __init__(self, found: Mapping[str, _InstalledPlugin], blocked: Iterable[str] = ()) -> None:
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
        """Finds the installed plugins without importing them.

        `enabled`: these plugins only; None means all. `blocked`: never these. `modules`: further plugins as modules
        (or any objects with hooks), by name. `installed`: entry points instead of those of this environment.
        Raises NotFound for an enabled or blocked name that no plugin has, AlreadyExists for a module under the name of
        an installed plugin.
        """
        found = _discover(entry_points(group=GROUP) if installed is None else installed)
        for name, module in (modules or {}).items():
            if name in found:
                raise AlreadyExists(
                    f"plugin {name!r} is also installed by {found[name].distribution}; uninstall that one"
                )
            found[name] = _InstalledPlugin(name, partial(_return_module, module))
        for name in (*(enabled or ()), *blocked):
            if name not in found:
                raise NotFound(f"no plugin {name!r} is installed; installed: {_listed(found)}")
        if enabled is not None:
            found = {name: found[name] for name in enabled}
        return cls(found, blocked)

    def backend(self, name: str) -> ModelBackend:
        """The named backend. Raises NotFound, with the cause and what to install, if it cannot be used."""
        return self._one(name, "model backend", lambda provided: provided.backends)

    def online_store(self, name: str) -> OnlineStoreKind:
        """The named kind of online store. Raises NotFound as `backend` does."""
        return self._one(name, "online store", lambda provided: provided.online_stores)

    def backends(self) -> list[ModelBackend]:
        """Every backend that works, by name. Imports every plugin."""
        return self._all(lambda provided: provided.backends)

    def metrics(self) -> dict[str, Metric]:
        """Every metric that works, by name. Imports every plugin."""
        return {metric.name: metric for metric in self._all(lambda provided: provided.metrics)}

    def info(self) -> list[PluginInfo]:
        """Every plugin, with its kinds and its state. Imports all plugins, but not their frameworks."""
        lines: list[PluginInfo] = []
        for found in self._sorted():
            state, reason, provided = self._state(found)
            lines.append(PluginInfo(found.name, found.distribution, found.version, provided.kinds, state, reason))
        return lines

    def provided(self, plugin: str) -> Provided:
        """The objects that a plugin provides. Raises NotFound as `backend` does."""
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

    def _sorted(self) -> list[_InstalledPlugin]:
        return [found for _, found in sorted(self._found.items())]

    def _state(self, found: _InstalledPlugin) -> tuple[State, str, Provided]:
        """The state of a plugin, the reason if it is not "ok", and the objects that it registered."""
        if found.name in self._blocked:
            return "blocked", "it is on the list of blocked plugins", Provided()
        hosted = self._host(found)
        if isinstance(hosted, PluginError):
            return "error", str(hosted), Provided()
        missing = missing_modules(hosted)
        if missing:
            return "missing", f"{', '.join(missing)} not installed; {_install_hint(found)}", hosted
        return "ok", "", hosted

    def _host(self, found: _InstalledPlugin) -> Provided | PluginError:
        with self._lock:
            if found.name not in self._hosted:
                try:
                    self._hosted[found.name] = _import(found)
                except PluginError as error:
                    self._hosted[found.name] = error
            return self._hosted[found.name]


def names_in(setting: str) -> list[str]:
    """The names in the text of a setting, separated by commas or spaces."""
    return setting.replace(",", " ").split()


def _discover(installed: Iterable[EntryPoint]) -> dict[str, _InstalledPlugin]:
    """The installed plugins by name; a name of several distributions is marked as a clash."""
    found: dict[str, _InstalledPlugin] = {}
    for point in installed:
        dist = point.dist
        here = _InstalledPlugin(
            point.name, point.load, *_identity(dist), extra=dist is not None and point.name in _extras(dist)
        )
        other = found.get(point.name)
        if other is not None:
            owners = " and ".join(sorted({*other.clash.split(" and "), other.distribution, here.distribution} - {""}))
            here = _InstalledPlugin(point.name, point.load, here.distribution, here.version, clash=owners)
        found[point.name] = here
    return found


def _import(found: _InstalledPlugin) -> Provided:
    if found.clash:
        raise PluginError(f"{found.clash} both claim the name {found.name!r}; uninstall one of them")
    try:
        module = found.load()
    # The import of a plugin may raise anything, SystemExit included.
    except (Exception, SystemExit) as error:
        hint = f"; {_install_hint(found)}" if isinstance(error, ImportError) else ""
        raise PluginError(f"importing it raised {type(error).__name__}: {error}{hint}") from error
    return host(found.name, module)


def _return_module(module: Any) -> Any:
    return module


def _install_hint(found: _InstalledPlugin) -> str:
    """The command that installs the missing modules."""
    if found.extra:
        return f"pip install '{found.distribution}[{found.name}]'"
    return f"install what {found.distribution or 'it'} needs: pip install --upgrade {found.distribution or '…'}"


def _identity(dist: Distribution | None) -> tuple[str, str]:
    return (dist.name, dist.version) if dist is not None else ("", "")


def _extras(dist: Distribution) -> list[str]:
    return dist.metadata.get_all("Provides-Extra") or []


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "none"
