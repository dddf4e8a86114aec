"""Errors of the plugin layer; leaves of the one tree in `treadle.rpc.errors`.

Internal
└── BackendFault        a plugin broke its contract: it raised, or answered in the wrong shape
"""

from treadle.rpc.errors import Internal


class BackendFault(Internal):
    """The fault lies with the model or its backend, not with the caller's input."""
