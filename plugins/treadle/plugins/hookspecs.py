"""The hooks a plugin may implement. Each is handed a callback, so the host keeps control of names.

A plugin owns the name of its entry point: what it registers is called that, or that and a suffix
(``acme``, ``acme.profit``). So looking one thing up imports one plugin.
"""

from collections.abc import Callable
from typing import TypeAlias

import pluggy

from treadle.plugins.backend import ModelBackend
from treadle.plugins.metrics import Metric
from treadle.plugins.stores import OnlineStoreKind

GROUP = "treadle"
"""The entry-point group, and the prefix of every hook."""

RegisterBackend: TypeAlias = Callable[[ModelBackend], None]
RegisterOnlineStore: TypeAlias = Callable[[OnlineStoreKind], None]
RegisterMetric: TypeAlias = Callable[[Metric], None]

hookspec = pluggy.HookspecMarker(GROUP)
hookimpl = pluggy.HookimplMarker(GROUP)
"""Marks a function of a plugin as the implementation of the hook of the same name."""


@hookspec
def treadle_model_backends(register: RegisterBackend) -> None:
    """Call `register` with each model backend of the plugin."""


@hookspec
def treadle_online_stores(register: RegisterOnlineStore) -> None:
    """Call `register` with each kind of online store of the plugin."""


@hookspec
def treadle_metrics(register: RegisterMetric) -> None:
    """Call `register` with each metric of the plugin."""
