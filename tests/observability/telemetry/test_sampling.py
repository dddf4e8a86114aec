"""The laws of sampling, with clocks of the tests' own."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.trace.sampling import Decision
from opentelemetry.trace import Link, NonRecordingSpan, SpanContext, SpanKind, TraceFlags

from treadle.observability.telemetry.sampling import AdaptiveSampler, RatioSampler, SpanSampler, TraceBudget

# Gaps between requests in milliseconds: bursts, load and quiet.
gaps = st.lists(st.one_of(st.just(0), st.integers(0, 20), st.integers(0, 3_000)), max_size=400)
rates = st.integers(1, 50)
TRACE = 7


def arrivals(milliseconds: list[int]) -> list[float]:
    return [at / 1000 for at in itertools.accumulate(milliseconds, initial=1_000_000)]


@given(rates, gaps)
def test_any_second_has_at_most_one_seconds_worth_and_a_burst(per_second: int, milliseconds: list[int]) -> None:
    budget = TraceBudget(per_second)
    admitted = [at for at in arrivals(milliseconds) if budget.admit(at)]
    for first, started in enumerate(admitted):
        for last in range(first, len(admitted)):
            seconds = admitted[last] - started
            assert last - first + 1 <= per_second * (seconds + 1) + 0.01


@given(rates, gaps)
def test_a_quiet_process_traces_everything(per_second: int, milliseconds: list[int]) -> None:
    budget, interval = TraceBudget(per_second), 1 / per_second
    at = 1_000_000.0
    for gap in milliseconds:
        at += max(gap / 1000, interval * 1.001)
        assert budget.admit(at)


@given(rates)
def test_one_seconds_worth_may_come_at_once(per_second: int) -> None:
    budget = TraceBudget(per_second)
    assert [budget.admit(5.0) for _ in range(per_second + 3)] == [True] * per_second + [False] * 3


@given(rates, gaps)
def test_under_load_the_budget_is_used_up(per_second: int, milliseconds: list[int]) -> None:
    budget = TraceBudget(per_second)
    admitted = sum(budget.admit(1_000_000 + step / 1000) for step in range(3_000))
    assert admitted == pytest.approx(4 * per_second, abs=2)


def test_a_budget_of_nothing_admits_nothing() -> None:
    assert not any(TraceBudget(0).admit(float(at)) for at in range(100))


@pytest.mark.parametrize("make", [lambda: TraceBudget(-1), lambda: RatioSampler(-0.1), lambda: RatioSampler(1.1)])
def test_bounds_that_make_no_sense_are_errors(make: object) -> None:
    with pytest.raises(ValueError, match="must be"):
        make()  # type: ignore[operator]


def test_unsampled_callers_are_followed_and_cost_no_budget() -> None:
    sampler = AdaptiveSampler(TraceBudget(1))
    assert not any(sampler.sample(TRACE, False, 1.0) for _ in range(10))
    assert sampler.sample(TRACE, True, 1.0)


def test_sampled_callers_and_new_traces_share_the_budget() -> None:
    sampler = AdaptiveSampler(TraceBudget(4))
    assert [sampler.sample(TRACE, caller, 1.0) for caller in (True, None, True, None, True, None)] == [True] * 4 + [
        False
    ] * 2


@given(st.floats(0, 1), st.integers(0, 2**128 - 1), st.booleans())
def test_a_ratio_decides_by_trace_id_and_leaves_callers_alone(ratio: float, trace_id: int, caller: bool) -> None:
    sampler = RatioSampler(ratio)
    assert sampler.sample(trace_id, caller, 0.0) is caller
    assert sampler.sample(trace_id, None, 0.0) == (trace_id & (2**64 - 1) < round(ratio * 2**64))


def test_a_forced_ratio_has_no_bound() -> None:
    assert all(RatioSampler(1).sample(trace_id, None, 1.0) for trace_id in range(10_000))


def span(*, remote: bool, sampled: bool) -> SpanContext:
    return SpanContext(TRACE, 9, is_remote=remote, trace_flags=TraceFlags(int(sampled)))


def decision(
    sampler: SpanSampler, parent: SpanContext | None, kind: SpanKind, links: list[Link] | None = None
) -> Decision:
    context = trace.set_span_in_context(NonRecordingSpan(parent), Context()) if parent else Context()
    return sampler.should_sample(context, TRACE, "x", kind, links=links).decision


SAMPLED, DROPPED = Decision.RECORD_AND_SAMPLE, Decision.DROP


def test_the_sdk_bounds_requests_and_follows_with_what_is_below_them() -> None:
    sampler = SpanSampler(AdaptiveSampler(TraceBudget(1)), clock=lambda: 1.0)
    caller = span(remote=True, sampled=True)
    assert decision(sampler, caller, SpanKind.SERVER) is SAMPLED
    assert decision(sampler, caller, SpanKind.SERVER) is DROPPED
    assert decision(sampler, None, SpanKind.SERVER) is DROPPED
    for sampled, expected in ((True, SAMPLED), (False, DROPPED)):
        assert decision(sampler, span(remote=False, sampled=sampled), SpanKind.SERVER) is expected
        assert decision(sampler, span(remote=False, sampled=sampled), SpanKind.INTERNAL) is expected
        assert decision(sampler, span(remote=True, sampled=sampled), SpanKind.CLIENT) is expected


def test_a_batch_of_sampled_requests_is_recorded_whatever_is_left() -> None:
    sampler = SpanSampler(AdaptiveSampler(TraceBudget(0)))
    links = [Link(span(remote=False, sampled=sampled)) for sampled in (False, True)]
    assert decision(sampler, None, SpanKind.INTERNAL, links) is SAMPLED
    assert decision(sampler, None, SpanKind.INTERNAL, links[:1]) is DROPPED
