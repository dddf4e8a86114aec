"""Calls the hooks of one plugin module, and keeps the objects that they register.

Each plugin has its own pluggy manager, so that a faulty one cannot affect another. Only this module has untyped calls
of pluggy.
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
    """A plugin cannot be used; the message says why."""


@dataclass
class Provided:
    """The objects that a plugin registered, by name."""

    backends: dict[str, ModelBackend] = field(default_factory=dict)
    online_stores: dict[str, OnlineStoreKind] = field(default_factory=dict)
    metrics: dict[str, Metric] = field(default_factory=dict)

    @property
    def kinds(self) -> tuple[str, ...]:
        """ "backend sklearn", "metric acme.profit", …"""
        named = (("backend", self.backends), ("online store", self.online_stores), ("metric", self.metrics))
        return tuple(f"{kind} {name}" for kind, instances in named for name in instances)


def host(name: str, module: Any) -> Provided:
    """The objects that the plugin `module` registers. Raises PluginError if it cannot be used."""
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
    """The missing modules that backends of the plugin need. Imports nothing."""
    wanted = {module for backend in provided.backends.values() for module in backend.requires}
    return tuple(sorted(module for module in wanted if find_spec(module) is None))


class _Register:
    """The callback of a hook: checks the type and name of an object, and keeps it."""

    def __init__(self, plugin: str, kind: type[Any], kept: dict[str, Any]) -> None:
        self._plugin, self._kind, self._kept = plugin, kind, kept

    def __call__(self, instance: Any) -> None:
        wanted = self._kind.__name__
        if not isinstance(instance, self._kind):
            raise PluginError(f"it registers a {_type_of(instance)}; an instance of {wanted} is wanted")
        name = getattr(instance, "name", None)
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise PluginError(f"{_type_of(instance)}.name must be lower-case letters, digits, '.', '_' and '-'")
        if name != self._plugin and not name.startswith(f"{self._plugin}."):
            raise PluginError(
                f"it registers {wanted} {name!r}, but owns {self._plugin!r} and {self._plugin + '.…'!r} only; "
                "rename it, or its entry point"
            )
        if name in self._kept:
            raise PluginError(f"it registers {wanted} {name!r} twice")
        self._kept[name] = instance


def _type_of(instance: Any) -> str:
    return f"class {instance.__name__}" if isinstance(instance, type) else type(instance).__name__
