"""What the present call knows: how long it may take, for whom it runs, what its caller sent along.

The server seam sets it for the time of a call; the client seam passes it on to the next hop.
"""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field

TENANT = "treadle-tenant"
ACTOR = "treadle-actor"
# Asks the gateway for one version of a deployment.
PIN = "treadle-pin-version"
# Metadata that a hop passes on to the next.
FORWARDED = (ACTOR, "baggage")


@dataclass(frozen=True, slots=True)
class Call:
    """One call. `deadline` is on `time.monotonic()`'s clock; None means no limit."""

    deadline: float | None = None
    tenant: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)
    trace_id: str = ""


_NO_CALL = Call()
_call: ContextVar[Call] = ContextVar("treadle_call", default=_NO_CALL)


def current() -> Call:
    """The call being served, or an empty one outside of any."""
    return _call.get()


def remaining() -> float | None:
    """Seconds left of the present call's deadline; negative when it has passed, None without one."""
    deadline = _call.get().deadline
    return None if deadline is None else deadline - time.monotonic()


@contextmanager
def serving(call: Call) -> Iterator[None]:
    """Makes `call` the present one. Like `tracing.active`, it does not mind being left from another context."""
    token = _call.set(call)
    try:
        yield
    finally:
        with suppress(ValueError):
            _call.reset(token)
