"""The errors of plugins; they belong to the tree of `treadle.core.errors`.

Internal
└── BackendFault        a plugin broke its contract: it raised, or returned a wrong shape
FailedPrecondition
└── NotCompiled         a model has no faster form; nothing is wrong with the model
"""

from treadle.core.errors import FailedPrecondition, Internal


class BackendFault(Internal):
    """The fault lies with the model or its backend, not with the caller's input."""


class NotCompiled(FailedPrecondition):
    """The model keeps its original form; the message says why, and what to do where something can be done."""
