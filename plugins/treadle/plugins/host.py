"""Hosts one plugin: imports its module, calls its hooks, keeps what they register.

Each plugin has a pluggy manager of its own, so a faulty one cannot disturb another. pluggy's untyped calls stay
in this file.
"""

import re
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

import pluggy

from treadle.plugins import hookspecs as spec
from treadle.plugins.backend import ModelBackend
from treadle.plugins.metrics import Metric
from treadle.plugins.stores import OnlineStoreKind

_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]*")


class PluginError(Exception):
    """A plugin that cannot be used; the message says why, for people."""


@dataclass
class Provided:
    """What a plugin registered, by name."""

    backends: dict[str, ModelBackend] = field(default_factory=dict)
    online_stores: dict[str, OnlineStoreKind] = field(default_factory=dict)
    metrics: dict[str, Metric] = field(default_factory=dict)

    @property
    def kinds(self) -> tuple[str, ...]:
        """ "backend sklearn", "metric acme.profit", …"""
        named = (("backend", self.backends), ("online store", self.online_stores), ("metric", self.metrics))
        return tuple(f"{kind} {name}" for kind, things in named for name in things)


def host(name: str, module: Any) -> Provided:
    """What the plugin `module` provides. Raises PluginError for anything wrong with it."""
    manager = pluggy.PluginManager(spec.GROUP)
    manager.add_hookspecs(spec)
    try:
        manager.register(module, name)
        manager.check_pending()  # a misspelt hook is otherwise never called and never noticed
    except (pluggy.PluginValidationError, ValueError) as error:
        known = ", ".join(sorted(hook for hook in vars(spec) if hook.startswith(f"{spec.GROUP}_")))
        raise PluginError(f"{str(error).splitlines()[-1].strip()} (hooks: {known})") from error
    provided = Provided()
    hooks = manager.hook
    try:
        hooks.treadle_model_backends(register=_Register(name, ModelBackend, provided.backends))
        hooks.treadle_online_stores(register=_Register(name, OnlineStoreKind, provided.online_stores))
        hooks.treadle_metrics(register=_Register(name, Metric, provided.metrics))
    except PluginError:
        raise
    except Exception as error:
        raise PluginError(f"a hook raised {type(error).__name__}: {error}") from error
    if not provided.kinds:
        raise PluginError("it registers nothing; is @hookimpl above its hook, and register(...) called?")
    return provided


def missing_modules(provided: Provided) -> tuple[str, ...]:
    """Modules that the plugin's backends need and that are not installed. Imports nothing."""
    wanted = {module for backend in provided.backends.values() for module in backend.requires}
    return tuple(sorted(module for module in wanted if find_spec(module) is None))


class _Register:
    """The callback of one hook: checks what a plugin hands over before keeping it."""

    def __init__(self, plugin: str, kind: type[Any], kept: dict[str, Any]) -> None:
        self._plugin, self._kind, self._kept = plugin, kind, kept

    def __call__(self, thing: Any) -> None:
        wanted = self._kind.__name__
        if not isinstance(thing, self._kind):
            raise PluginError(f"it registers a {_type_of(thing)}; an instance of {wanted} is wanted")
        name = getattr(thing, "name", None)
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise PluginError(f"{_type_of(thing)}.name must be lower-case letters, digits, '.', '_' and '-'")
        if name != self._plugin and not name.startswith(f"{self._plugin}."):
            raise PluginError(
                f"it registers {wanted} {name!r}, but owns {self._plugin!r} and {self._plugin + '.…'!r} only; "
                "rename it, or its entry point"
            )
        if name in self._kept:
            raise PluginError(f"it registers {wanted} {name!r} twice")
        self._kept[name] = thing


def _type_of(thing: Any) -> str:
    return f"class {thing.__name__}" if isinstance(thing, type) else type(thing).__name__
