"""The span of the present call, whoever records it: the SDK in this process, or the host natively."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import Token
from typing import Any

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.trace import Span
from opentelemetry.util.types import AttributeValue

from treadle.observability.telemetry.propagation import TRACEPARENT, inject
from treadle.rpc import context as call_context


def attach(span: Span) -> Token[Any]:
    """Makes `span` the current one, until `detach`."""
    return otel_context._RUNTIME_CONTEXT.attach(trace.set_span_in_context(span))  # noqa: SLF001  # see `detach`


def detach(token: Token[Any]) -> None:
    """Undoes `attach`.

    Unlike OpenTelemetry's own, which logs an error, it does not mind being called in another context, as happens when
    an abandoned async generator is closed.
    """
    with suppress(ValueError):
        otel_context._RUNTIME_CONTEXT.detach(token)  # noqa: SLF001  # as above


@contextmanager
def active(span: Span) -> Iterator[None]:
    """Makes `span` the current one for a block."""
    token = attach(span)
    try:
        yield
    finally:
        detach(token)


def is_recording() -> bool:
    """Whether anybody records the present call, so that attributes are worth computing."""
    return call_context.current().sampled or trace.get_current_span().is_recording()


def annotate(attributes: Mapping[str, AttributeValue]) -> None:
    """Adds attributes to the span of the present call."""
    span = trace.get_current_span()
    if span.is_recording():
        span.set_attributes(attributes)
    else:
        call = call_context.current()
        if call.sampled:
            call.attributes.update(attributes)


def traceparent() -> str:
    """The span of the present call as a W3C header; empty where there is none."""
    return call_context.current().traceparent or dict(inject(trace.get_current_span())).get(TRACEPARENT, "")
