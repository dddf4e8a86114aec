"""The current span, for code that may be left from another context."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.trace import Span


@contextmanager
def active(span: Span) -> Iterator[None]:
    """Makes `span` the current one.

    Unlike OpenTelemetry's own, it does not mind being left from another context, as an abandoned
    async generator is.
    """
    token = otel_context._RUNTIME_CONTEXT.attach(trace.set_span_in_context(span))  # noqa: SLF001  # detach() logs instead of raising
    try:
        yield
    finally:
        with suppress(ValueError):
            otel_context._RUNTIME_CONTEXT.detach(token)  # noqa: SLF001  # as above
