"""Coalesced or each on its own: a request's outcome is the same, but for the time that it takes.

Time is virtual here: the loop's clock jumps to the next timer that is due, so that nothing sleeps and all is exact.
"""

import asyncio
import gc
import selectors
import weakref
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.trace import INVALID_SPAN_CONTEXT, NoOpTracer, SpanContext

from treadle.core.column import Column
from treadle.core.errors import DeadlineExceeded, InvalidInput, TreadleError, Unavailable
from treadle.gateway.pipeline.batch.request import PredictionRequest
from treadle.gateway.pipeline.batch.request_batch import PendingRequest
from treadle.gateway.pipeline.coalescing.coalescer import Coalescer, CoalescingKey, weight_of
from treadle.gateway.pipeline.coalescing.coalescing_queue import CoalesceLimits
from treadle.observability.telemetry.telemetry import Telemetry
from treadle.rpc.context import RequestContext, current, remaining, request_scope
from treadle.rpc.tracing import active

from .core import decoded_request

NEVER = 1e9
BAD = -1


class _Selector(selectors.DefaultSelector):
    """Does not wait: it moves the clock."""

    now = 0.0

    def select(self, timeout: float | None = None) -> Any:
        found = super().select(0)
        if not found and timeout:
            self.now += max(timeout, 1e-9)  # less would be lost in rounding
        return found


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose time passes only when all its tasks wait for it."""

    def __init__(self) -> None:
        self._clock = _Selector()
        super().__init__(self._clock)

    def time(self) -> float:
        return self._clock.now


def run(work: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    """Runs `work` in virtual time."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(work())


def now() -> float:
    return asyncio.get_running_loop().time()


def key(deployment: str = "a") -> CoalescingKey:
    return CoalescingKey(deployment, (), (), 0, ())


def pending(
    *values: int, timeout: float = 50.0, weight: int = 0, span: SpanContext = INVALID_SPAN_CONTEXT
) -> PendingRequest:
    """A request that arrives now, with a row for each value; `run` refuses BAD, and answers others with doubles."""
    request = PredictionRequest("a", (), [values], {})
    rows = len(values)
    return PendingRequest(request, RequestContext(), now(), now() + timeout, span, rows, weight or rows)


def doubled(values: Iterable[int]) -> Any:
    return tuple([2 * value for value in values])


@dataclass
class Call:
    """A batch that reached `run`."""

    deployment: str
    requests: Sequence[PendingRequest]
    at: float
    were_done: bool
    """Whether some request had its outcome before."""
    returned: float = NEVER
    down: bool = False

    @property
    def values(self) -> list[int]:
        return [value for each in self.requests for value in each.request.values[0]]


@dataclass
class Pipeline:
    """Gives each request of a batch its outcome after some seconds, honours deadlines, is down at times."""

    seconds: Callable[[int], float] = lambda number: 1.0
    down: Callable[[int], bool] = lambda number: False
    calls: list[Call] = field(default_factory=list)

    async def __call__(self, deployment: str, requests: Sequence[PendingRequest]) -> None:
        number = len(self.calls)
        were_done = any(each.is_done for each in requests)
        call = Call(deployment, tuple(requests), now(), were_done, down=self.down(number))
        self.calls.append(call)
        try:
            async with asyncio.timeout_at(max(each.deadline for each in requests)):
                await asyncio.sleep(self.seconds(number))
        except TimeoutError:
            raise DeadlineExceeded("no time was left") from None
        finally:
            call.returned = now()
        if call.down:
            raise Unavailable("the pipeline is down")
        for each in requests:
            (values,) = each.request.values
            if BAD in values:
                each.fail(InvalidInput(f"row {list(values).index(BAD)} is bad"))
            else:
                each.succeed(doubled(values))

    @property
    def batch_sizes(self) -> list[int]:
        return [len(call.requests) for call in self.calls]


def coalescer(pipeline: Pipeline, **limits: Any) -> Coalescer:
    return Coalescer(pipeline, CoalesceLimits(**limits), NoOpTracer(), now)


@dataclass
class Caller:
    """What one caller does, and what becomes of it."""

    at: float
    deployment: str
    values: tuple[int, ...]
    timeout: float
    leaves_after: float | None
    request: PendingRequest | None = None
    outcome: Any = None
    ended: float = NEVER

    @property
    def deadline(self) -> float:
        return self.at + self.timeout


@st.composite
def callers(draw: st.DrawFn) -> Caller:
    return Caller(
        at=draw(st.integers(0, 12)) / 4,
        deployment=draw(st.sampled_from("ab")),
        values=tuple(draw(st.lists(st.integers(BAD, 20), min_size=1, max_size=5))),
        timeout=draw(st.sampled_from([0.3, 1.1, 2.7, 50.0, 50.0])),
        leaves_after=draw(st.one_of(st.none(), st.none(), st.sampled_from([0.0, 0.2, 1.2]))),
    )


async def act(made: Coalescer, caller: Caller) -> None:
    await asyncio.sleep(caller.at)
    caller.request = pending(*caller.values, timeout=caller.timeout)
    work = asyncio.create_task(made.submit(key(caller.deployment), caller.request))
    if caller.leaves_after is not None:
        asyncio.get_running_loop().call_later(caller.leaves_after, work.cancel)
    try:
        caller.outcome = await work
    except (TreadleError, asyncio.CancelledError) as error:
        caller.outcome = error
    caller.ended = now()


@settings(max_examples=300, deadline=None)
@given(
    plan=st.lists(callers(), min_size=1, max_size=14),
    seconds=st.lists(st.sampled_from([0.1, 0.5, 1.0, 3.0]), min_size=1, max_size=6),
    down=st.lists(st.booleans(), max_size=3),
    rows=st.integers(1, 8),
    calls=st.integers(1, 3),
)
def test_each_request_gets_its_own_outcome_in_its_own_time(
    plan: list[Caller], seconds: list[float], down: list[bool], rows: int, calls: int
) -> None:
    pipeline = Pipeline(
        lambda number: seconds[number % len(seconds)], lambda number: number < len(down) and down[number]
    )

    async def scenario() -> None:
        made = coalescer(pipeline, rows=rows, calls=calls, slow_call_threshold_seconds=NEVER)
        await asyncio.gather(*(act(made, caller) for caller in plan))
        await asyncio.sleep(0.01)  # finished calls are tidied away
        assert asyncio.all_tasks() == {asyncio.current_task()}, "a batch runs on that nobody waits for"
        assert not made._queues, "an idle queue was kept"

    run(scenario)
    for caller in plan:
        check_outcome(caller, [call for call in pipeline.calls if caller.request in call.requests])
    for call in pipeline.calls:
        check_call(call, plan, rows)
    for deployment in "ab":
        check_in_flight([call for call in pipeline.calls if call.deployment == deployment], calls)


def check_outcome(caller: Caller, calls: list[Call]) -> None:
    """Its own answer or its own error, no later than its deadline; and no request is run twice."""
    assert len(calls) <= 1
    if isinstance(caller.outcome, asyncio.CancelledError):
        assert caller.leaves_after is not None
    elif isinstance(caller.outcome, DeadlineExceeded):
        assert caller.ended == pytest.approx(caller.deadline), "told as soon as the deadline passes, and no sooner"
    elif isinstance(caller.outcome, Unavailable):
        assert calls[0].down
    elif isinstance(caller.outcome, InvalidInput):
        assert caller.outcome.message == f"row {caller.values.index(BAD)} is bad"
    else:
        assert BAD not in caller.values
        assert caller.outcome == doubled(caller.values)
    assert caller.ended <= caller.deadline or caller.ended == pytest.approx(caller.deadline)


def check_call(call: Call, plan: list[Caller], rows: int) -> None:
    """One key, not too many rows, in order of arrival, none whose caller has left or whose deadline has passed."""
    asked = [next(caller for caller in plan if caller.request is request) for request in call.requests]
    assert {caller.deployment for caller in asked} == {call.deployment}
    assert len(asked) == 1 or len(call.values) <= rows
    assert [caller.at for caller in asked] == sorted(caller.at for caller in asked)
    assert not call.were_done
    for caller in asked:
        assert call.at <= caller.ended


def check_in_flight(calls: list[Call], most: int) -> None:
    """No more calls are in flight than may be."""
    for call in calls:
        assert sum(other.at <= call.at < other.returned for other in calls) <= most


def test_an_idle_queue_is_forgotten() -> None:
    class Name(str):
        __slots__ = ("__weakref__",)

    pipeline = Pipeline()

    async def scenario() -> None:
        made = coalescer(pipeline)
        names = [Name(number) for number in range(3)]
        watched = [weakref.ref(name) for name in names]
        await asyncio.gather(*(made.submit(key(name), pending(1)) for name in names * 3))
        pipeline.calls.clear()
        names.clear()
        await asyncio.sleep(0.01)
        gc.collect()
        assert [name() for name in watched] == [None] * 3

    run(scenario)


def test_a_lone_request_runs_in_its_callers_own_task() -> None:
    tasks = []

    class Watching(Pipeline):
        async def __call__(self, deployment: str, requests: Sequence[PendingRequest]) -> None:
            tasks.append(asyncio.current_task())
            await super().__call__(deployment, requests)

    async def scenario() -> None:
        made = coalescer(Watching())
        assert await made.submit(key(), pending(1, 2)) == doubled((1, 2))
        assert tasks == [asyncio.current_task()]

    run(scenario)


def test_requests_that_arrive_while_a_call_is_in_flight_share_the_next_batch() -> None:
    pipeline = Pipeline()

    async def scenario() -> None:
        made = coalescer(pipeline, slow_call_threshold_seconds=NEVER)
        first = asyncio.create_task(made.submit(key(), pending(9)))
        await asyncio.sleep(0.001)
        await asyncio.gather(first, *(made.submit(key(), pending(number)) for number in range(9)))

    run(scenario)
    assert pipeline.batch_sizes == [1, 9]


def test_requests_that_arrive_in_one_turn_of_the_loop_share_a_batch() -> None:
    pipeline = Pipeline()

    async def scenario() -> None:
        made = coalescer(pipeline)
        await asyncio.gather(*(made.submit(key(), pending(number)) for number in range(10)))

    run(scenario)
    assert [call.values for call in pipeline.calls] == [list(range(10))]


def test_a_queue_stays_open_for_a_moment_after_a_batch_so_that_the_next_burst_coalesces() -> None:
    pipeline = Pipeline()

    async def scenario() -> None:
        made = coalescer(pipeline)
        await asyncio.gather(*(made.submit(key(), pending(number)) for number in range(2)))
        await asyncio.sleep(0.001)
        assert made._queues
        await made.submit(key(), pending(7))
        await asyncio.sleep(0.001)
        assert not made._queues

    run(scenario)
    assert pipeline.batch_sizes == [2, 1]


def test_calls_that_hang_do_not_hold_up_the_requests_behind_them() -> None:
    pipeline = Pipeline(seconds=lambda number: 1000.0 if number < 2 else 0.01)

    async def scenario() -> float:
        made = coalescer(pipeline, calls=2, slow_call_threshold_seconds=0.02)
        stuck = []
        for number in range(2):
            stuck.append(asyncio.create_task(made.submit(key(), pending(number, timeout=100.0))))
            await asyncio.sleep(0.001)
        assert await made.submit(key(), pending(7)) == doubled((7,))
        answered = now()
        for task in stuck:
            with pytest.raises(DeadlineExceeded):
                await task
        return answered

    assert run(scenario) == pytest.approx(0.03)  # the first call turns slow after 20 ms; the answer takes 10


@pytest.mark.parametrize("beside_slow_call", [False, True])
def test_a_batch_that_hangs_does_not_hold_up_those_of_its_burst_that_did_not_fit(beside_slow_call: bool) -> None:
    pipeline = Pipeline(seconds=lambda number: 0.01 if number == 1 and beside_slow_call else 10.0)

    async def scenario() -> None:
        made = coalescer(pipeline, rows=2, slow_call_threshold_seconds=0.02)
        slow = []
        if beside_slow_call:
            slow = [asyncio.create_task(made.submit(key(), pending(9)))]
            await asyncio.sleep(0.025)
            await made.submit(key(), pending(8))  # starts at once: the other no longer counts as in flight
        await asyncio.sleep(0.5 - now())
        await asyncio.gather(*slow, *(made.submit(key(), pending(number)) for number in range(6)))

    run(scenario)
    burst = pipeline.calls[2 * beside_slow_call :]
    assert [call.values for call in burst] == [[0, 1], [2, 3], [4, 5]]
    assert [call.at for call in burst] == pytest.approx([0.5, 0.52, 0.54], abs=1e-6)


def test_a_call_whose_callers_have_all_left_is_cancelled() -> None:
    pipeline = Pipeline(seconds=lambda number: 10.0)

    async def scenario() -> None:
        made = coalescer(pipeline, slow_call_threshold_seconds=NEVER)
        first = asyncio.create_task(made.submit(key(), pending(0)))
        await asyncio.sleep(0.5)
        others = [asyncio.create_task(made.submit(key(), pending(number))) for number in range(3)]
        for task, at in zip([first, *others], [1.0, 2.0, 3.0, 4.0], strict=True):
            asyncio.get_running_loop().call_at(at, task.cancel)
        await asyncio.wait([first, *others])

    run(scenario)
    assert pipeline.batch_sizes == [1, 3]
    assert [call.returned for call in pipeline.calls] == [pytest.approx(1.0), pytest.approx(4.0)]


def test_a_batch_is_cancelled_once_the_deadlines_of_all_its_requests_have_passed() -> None:
    class Deaf(Pipeline):
        """Looks at no deadline."""

        async def __call__(self, deployment: str, requests: Sequence[PendingRequest]) -> None:
            await super().__call__(deployment, [pending(0, timeout=NEVER) for _ in requests])

    pipeline = Deaf(seconds=lambda number: 100.0)

    async def scenario() -> None:
        made = coalescer(pipeline)
        asked = [made.submit(key(), pending(0, timeout=timeout)) for timeout in (1.0, 3.0)]
        outcomes = await asyncio.gather(*asked, return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [DeadlineExceeded] * 2

    run(scenario)
    assert [call.returned for call in pipeline.calls] == [pytest.approx(3.0)]


def test_an_error_of_a_batch_is_an_object_of_its_own_for_each_request() -> None:
    async def scenario() -> None:
        made = coalescer(Pipeline(down=lambda number: True))
        asked = [made.submit(key(), pending(number)) for number in range(3)]
        outcomes = await asyncio.gather(*asked, return_exceptions=True)
        assert [str(outcome) for outcome in outcomes] == ["the pipeline is down"] * 3
        assert len(set(map(id, outcomes))) == 3

    run(scenario)


@pytest.mark.parametrize("count", [1, 3])
def test_a_request_that_the_pipeline_forgets_is_an_error_and_not_a_caller_who_waits_for_ever(count: int) -> None:
    async def forget(deployment: str, requests: Sequence[PendingRequest]) -> None:
        await asyncio.sleep(1.0)

    async def scenario() -> None:
        made = Coalescer(forget, CoalesceLimits(), NoOpTracer(), now)
        asked = [made.submit(key(), pending(number)) for number in range(count)]
        outcomes = await asyncio.gather(*asked, return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [AssertionError] * count

    run(scenario)


def test_a_large_row_counts_as_several() -> None:
    picture = decoded_request("a", tensors=[Column.of("x", np.zeros((1, 4096), np.float32))])
    assert weight_of(picture) == 4
    small = decoded_request("a", context=[Column.of("x", np.zeros(3))])
    assert weight_of(small) == 3
    pipeline = Pipeline()

    async def scenario() -> None:
        made = coalescer(pipeline, rows=8)
        await asyncio.gather(*(made.submit(key(), pending(number, weight=4)) for number in range(5)))

    run(scenario)
    assert pipeline.batch_sizes == [2, 2, 1]


def test_requests_of_different_tenants_or_actors_never_share_a_batch() -> None:
    pipeline = Pipeline()
    contexts = [
        RequestContext(tenant=tenant, metadata={"treadle-actor": actor, "user-agent": agent})
        for tenant, actor, agent in product("st", "ab", "xy")
    ]

    async def ask(made: Coalescer, context: RequestContext) -> None:
        request = pending(1)
        request.context = context
        await made.submit(CoalescingKey.of(request.request, context), request)

    async def scenario() -> None:
        made = coalescer(pipeline)
        await asyncio.gather(*(ask(made, context) for context in contexts * 5))

    run(scenario)
    assert pipeline.batch_sizes == [10] * 4
    for call in pipeline.calls:
        callers = [(each.context.tenant, each.context.metadata["treadle-actor"]) for each in call.requests]
        assert len(set(callers)) == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"deployment": "b"},
        {"outputs": ("y",)},
        {"now_micros": 5},
        {"context": [Column.of("x", [1])]},
        {"context": [Column.of("x", [[1.0]])]},
        {"entities": [Column.of("x", [1.0])], "context": []},
    ],
)
def test_a_batch_holds_requests_of_one_deployment_schema_outputs_and_moment(changes: dict[str, Any]) -> None:
    context = RequestContext()
    fields: dict[str, Any] = {"deployment": "a", "context": [Column.of("x", [1.0])]}
    one = CoalescingKey.of(decoded_request(**fields), context)
    assert one == CoalescingKey.of(decoded_request(**fields, request_id="r", return_features=True), context)
    assert one != CoalescingKey.of(decoded_request(**(fields | changes)), context)


def test_a_batch_runs_with_the_longest_of_the_deadlines_and_a_lone_request_with_its_own() -> None:
    left = []

    class Watching(Pipeline):
        async def __call__(self, deployment: str, requests: Sequence[PendingRequest]) -> None:
            left.append(remaining())
            await super().__call__(deployment, requests)

    async def scenario() -> None:
        made = coalescer(Watching())
        asked = [made.submit(key(), pending(1, timeout=timeout)) for timeout in (50.0, 20.0, 7000.0, 30.0)]
        await asyncio.gather(*asked)
        with request_scope(RequestContext()):
            await made.submit(key("b"), pending(1))

    run(scenario)
    assert left == [pytest.approx(7000.0, abs=600.0), None]


def test_a_batch_runs_in_the_context_of_one_of_its_callers() -> None:
    seen = []

    class Watching(Pipeline):
        async def __call__(self, deployment: str, requests: Sequence[PendingRequest]) -> None:
            seen.append(current().tenant)
            await super().__call__(deployment, requests)

    async def ask(made: Coalescer) -> None:
        with request_scope(RequestContext(tenant="s")):
            await made.submit(key(), pending(1))

    async def scenario() -> None:
        made = coalescer(Watching())
        await asyncio.gather(*(ask(made) for _ in range(3)))

    run(scenario)
    assert seen == ["s"]


def test_the_span_of_a_batch_is_a_child_of_the_first_traced_request_and_links_to_the_others() -> None:
    telemetry = Telemetry.recording("gateway")
    traced: list[SpanContext] = []

    async def untraced(made: Coalescer, number: int) -> None:
        await made.submit(key(), pending(number, number))

    async def trace(made: Coalescer, number: int) -> None:
        span = telemetry.tracer.start_span(f"request {number}")
        traced.append(span.get_span_context())
        with active(span):
            await made.submit(key(), pending(number, span=span.get_span_context()))
        span.end()

    async def scenario() -> None:
        limits = CoalesceLimits(slow_call_threshold_seconds=NEVER)
        made = Coalescer(Pipeline(), limits, telemetry.tracer, now)
        first = asyncio.create_task(untraced(made, 0))
        await asyncio.sleep(0.25)
        await asyncio.gather(first, *(trace(made, n) if n % 3 else untraced(made, n) for n in range(90)))

    run(scenario)
    (batch,) = [span for span in telemetry.spans if span.name == "treadle.coalesced"]
    assert len(traced) == 60
    assert batch.parent is not None
    assert batch.parent.span_id == traced[0].span_id
    assert [link.context.span_id for link in batch.links] == [span.span_id for span in traced[1:]]
    assert dict(batch.attributes or {}) == {
        "treadle.batch.size": 120,
        "treadle.batch.requests": 90,
        "treadle.queue_ms": pytest.approx(750.0),
    }


def test_a_batch_without_a_traced_request_and_a_lone_request_have_no_span_of_their_own() -> None:
    telemetry = Telemetry.recording("gateway")

    async def scenario() -> None:
        made = Coalescer(Pipeline(), CoalesceLimits(), telemetry.tracer, now)
        await asyncio.gather(*(made.submit(key(), pending(number)) for number in range(3)))
        span = telemetry.tracer.start_span("request")
        with active(span):
            await made.submit(key("b"), pending(1, span=span.get_span_context()))

    run(scenario)
    assert not [span for span in telemetry.spans if span.name == "treadle.coalesced"]
