"""The request context of the present call: its deadline, tenant, trace and metadata.

The instrumentation of servers sets it for the time of a call; `Channel` passes it on to the next service.
"""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar, Token
from dataclasses import dataclass, field
from typing import Self

TENANT = "treadle-tenant"
ACTOR = "treadle-actor"
# Asks the gateway for one version of a deployment.
VERSION_HEADER = "treadle-pin-version"
# Metadata that every service passes on to those that it calls.
FORWARDED = (ACTOR, "baggage")


@dataclass(slots=True)
class RequestContext:
    """One call. `deadline` is on `time.monotonic()`'s clock; None means no limit. Nobody changes it but `tracing`.

    Hosts make it by `from_metadata`, so that the same metadata means the same on each of them.
    """

    deadline: float | None = None
    tenant: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)
    trace_id: str = ""
    traceparent: str = ""
    """The span of this call, "00-<trace>-<span>-<flags>"; empty where the OpenTelemetry SDK makes the span."""
    parent_id: str = ""
    """The caller's span, 16 hexadecimal digits; empty for a request that begins its trace, and with the SDK."""
    sampled: bool = False
    """Whether the request is traced and its span is not the SDK's."""
    keep_span: bool = False
    """Whether an unsampled request leaves a span though it succeeds."""
    attributes: dict[str, object] = field(default_factory=dict)
    """Attributes of the span, added when the call ends."""

    @classmethod
    def from_metadata(
        cls,
        metadata: Mapping[str, str],
        *,
        deadline: float | None = None,
        trace_id: str = "",
        traceparent: str = "",
        parent_id: str = "",
        sampled: bool = False,
    ) -> Self:
        """The context of a call with this gRPC metadata or these HTTP headers, names in lower case, as text."""
        return cls(deadline, metadata.get(TENANT, ""), metadata, trace_id, traceparent, parent_id, sampled)


_NO_CALL = RequestContext()
_call: ContextVar[RequestContext] = ContextVar("treadle_call", default=_NO_CALL)


def current() -> RequestContext:
    """The call being served, or an empty one outside of any."""
    return _call.get()


def remaining() -> float | None:
    """Seconds left of the present call's deadline; negative when it has passed, None without one."""
    deadline = _call.get().deadline
    return None if deadline is None else deadline - time.monotonic()


def enter(call: RequestContext) -> Token[RequestContext]:
    """Makes `call` the present one, until `leave`."""
    return _call.set(call)


def leave(token: Token[RequestContext]) -> None:
    """Undoes `enter`. Like `tracing.detach`, it does not mind being called in another context."""
    with suppress(ValueError):
        _call.reset(token)


@contextmanager
def request_scope(call: RequestContext) -> Iterator[None]:
    """Makes `call` the present one for a block."""
    token = enter(call)
    try:
        yield
    finally:
        leave(token)
