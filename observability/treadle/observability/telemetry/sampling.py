"""Which requests are traced: all of a quiet process, a bounded number a second under load, or a forced share.

A `RequestSampler` decides for requests that enter the process. `SpanSampler` puts the same decision behind the
OpenTelemetry SDK, where spans below a request follow the request.
"""

import math
import threading
import time
from collections.abc import Callable, Sequence
from typing import Final, Protocol

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.trace.sampling import Decision, Sampler, SamplingResult
from opentelemetry.trace import Link, SpanKind, TraceState
from opentelemetry.util.types import Attributes

TRACES_PER_SECOND: Final = 100
"""The default bound of a process."""
_RATIO_BITS = 64
_ROUNDING = 1e-3
"""Of a trace: sums of intervals are not exact."""


class TraceBudget:
    """A token bucket of traces, shared by the services of a process.

    It holds one second's worth, so any `seconds` see at most `per_second` * (`seconds` + 1) traces, and a process that
    gets fewer than `per_second` requests a second traces them all. Safe to share between threads.
    """

    def __init__(self, per_second: int, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock` gives seconds. With 0 a second nothing is admitted. ValueError for fewer."""
        if per_second < 0:
            raise ValueError(f"{per_second} traces a second; it must be 0 or more")
        self.clock = clock
        self._interval = 1 / per_second if per_second else math.inf
        self._burst_seconds = (per_second - 1 + _ROUNDING) * self._interval if per_second else 0.0
        self._next = -math.inf
        self._lock = threading.Lock()
        self.exhausted_until = -math.inf if per_second else math.inf
        """Time on the clock before which nothing is admitted: a busy process compares, and takes no lock."""

    def admit(self, now: float) -> bool:
        """Takes one trace from the budget at time `now`; False if none is left."""
        if now < self.exhausted_until:
            return False
        with self._lock:
            if now < self.exhausted_until:
                return False
            self._next = max(self._next, now) + self._interval
            self.exhausted_until = self._next - self._burst_seconds
            return True


class RequestSampler(Protocol):
    """Decides whether a request that enters the process is traced."""

    def sample(self, trace_id: int, caller_sampled: bool | None, now: float) -> bool:
        """`caller_sampled`: the flag of the caller's trace context, None without one. `now`: on the budget's clock."""
        ...


class AdaptiveSampler:
    """Traces what is within the budget: requests without a trace context, and those of callers that are sampled."""

    def __init__(self, budget: TraceBudget) -> None:
        self._budget = budget

    def sample(self, trace_id: int, caller_sampled: bool | None, now: float) -> bool:
        return caller_sampled is not False and self._budget.admit(now)


class RatioSampler:
    """Traces a share of the requests that have no trace context; others follow their caller, without a bound."""

    def __init__(self, ratio: float) -> None:
        """ValueError for a ratio outside 0…1."""
        if not 0 <= ratio <= 1:
            raise ValueError(f"the share of requests to trace is {ratio}; it must be within 0 and 1")
        self._bound = round(ratio * (1 << _RATIO_BITS))

    def sample(self, trace_id: int, caller_sampled: bool | None, now: float) -> bool:
        if caller_sampled is not None:
            return caller_sampled
        return trace_id & ((1 << _RATIO_BITS) - 1) < self._bound


class SpanSampler(Sampler):
    """The SDK's face of a `RequestSampler`.

    A span inside of a request follows the request. A span that links to sampled spans, such as that of a batch, is
    recorded with them: there are never more of these than of the spans that they link to.
    """

    def __init__(self, requests: RequestSampler, clock: Callable[[], float] = time.monotonic) -> None:
        self._requests = requests
        self._clock = clock

    def should_sample(
        self,
        parent_context: Context | None,
        trace_id: int,
        name: str,
        kind: SpanKind | None = None,
        attributes: Attributes = None,
        links: Sequence[Link] | None = None,
        trace_state: TraceState | None = None,
    ) -> SamplingResult:
        parent = trace.get_current_span(parent_context).get_span_context()
        caller_sampled = parent.trace_flags.sampled if parent.is_valid else None
        if parent.is_valid and not (parent.is_remote and kind is SpanKind.SERVER):
            sampled = parent.trace_flags.sampled
        elif links and any(link.context.trace_flags.sampled for link in links):
            sampled = True
        else:
            sampled = self._requests.sample(trace_id, caller_sampled, self._clock())
        decision = Decision.RECORD_AND_SAMPLE if sampled else Decision.DROP
        return SamplingResult(
            decision, attributes if sampled else None, parent.trace_state if parent.is_valid else None
        )

    def get_description(self) -> str:
        return f"SpanSampler{{{type(self._requests).__name__}}}"
