"""Errors of the plugin layer; leaves of the one tree in `treadle.core.errors`.

Internal
└── BackendFault        a plugin broke its contract: it raised, or answered in the wrong shape
FailedPrecondition
└── NotCompiled         a model has no faster form here; nothing is wrong with the model
"""

from treadle.core.errors import FailedPrecondition, Internal


class BackendFault(Internal):
    """The fault lies with the model or its backend, not with the caller's input."""


class NotCompiled(FailedPrecondition):
    """The model keeps its original form; the message says why, and what to do where something can be done."""
