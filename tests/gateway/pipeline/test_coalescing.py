"""Asked together or each on its own: nobody can tell the difference, but for the time it takes.

Time is virtual here: the loop's clock jumps to the next thing that is due, so that nothing sleeps and all is exact.
"""

import asyncio
import gc
import selectors
import weakref
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.trace import NoOpTracer

from treadle.core.errors import DeadlineExceeded, Internal, InvalidInput, TreadleError, Unavailable
from treadle.gateway.pipeline.coalescer import Coalescer
from treadle.gateway.pipeline.lane import CoalesceLimits
from treadle.observability.telemetry.telemetry import Telemetry
from treadle.rpc.tracing import active

NEVER = 1e9


class _Selector(selectors.DefaultSelector):
    """Does not wait: it moves the clock."""

    now = 0.0

    def select(self, timeout: float | None = None) -> Any:
        found = super().select(0)
        if not found and timeout:
            self.now += max(timeout, 1e-9)  # less would be lost in rounding
        return found


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose time passes only when everybody waits for it."""

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


class Kind(str):
    """A key that can be watched: when nothing of it is about any more, nothing keeps it."""

    __slots__ = ("__weakref__",)


@dataclass(eq=False)
class Request:
    """One row or more. The callee refuses row `bad`, answers the others with their doubles."""

    values: tuple[int, ...]
    bad: int | None = None

    @property
    def answer(self) -> tuple[int, ...]:
        return tuple(2 * value for value in self.values)


@dataclass
class Made:
    """A call that reached the callee."""

    key: str
    requests: Sequence[Request]
    at: float
    timeout: float
    returned: float = NEVER
    down: bool = False


@dataclass
class Callee:
    """Answers rows in order after some seconds, honours its timeout, is down at times."""

    seconds: Callable[[int], float] = lambda number: 1.0
    down: Callable[[int], bool] = lambda number: False
    fault: type[TreadleError] = InvalidInput
    calls: list[Made] = field(default_factory=list)

    async def __call__(self, key: str, requests: Sequence[Request], timeout: float) -> list[tuple[int, ...]]:
        number = len(self.calls)
        call = Made(key, tuple(requests), now(), timeout, down=self.down(number))
        self.calls.append(call)
        try:
            async with asyncio.timeout(timeout):
                await asyncio.sleep(self.seconds(number))
        except TimeoutError:
            raise DeadlineExceeded("the callee had no time left") from None
        finally:
            call.returned = now()
        if call.down:
            raise Unavailable("the callee is down")
        row = 0
        for request in requests:
            if request.bad is not None:
                raise self.fault(f"row {row + request.bad} is bad")
            row += len(request.values)
        return [request.answer for request in requests]


def coalescer(callee: Callee, **limits: Any) -> "Coalescer[str, Request, tuple[int, ...]]":
    return Coalescer(callee, CoalesceLimits(**limits), NoOpTracer(), now)


@dataclass
class Planned:
    """What one caller does."""

    at: float
    key: str
    request: Request
    timeout: float
    leaves_after: float | None
    outcome: Any = None
    ended: float = NEVER


@st.composite
def planned(draw: st.DrawFn) -> Planned:
    values = draw(st.lists(st.integers(0, 99), min_size=1, max_size=5))
    bad = draw(st.one_of(st.none(), st.none(), st.integers(0, len(values) - 1)))
    return Planned(
        at=draw(st.integers(0, 12)) / 4,
        key=draw(st.sampled_from("ab")),
        request=Request(tuple(values), bad),
        timeout=draw(st.sampled_from([0.3, 1.1, 2.7, 50.0, 50.0])),
        leaves_after=draw(st.one_of(st.none(), st.none(), st.sampled_from([0.0, 0.2, 1.2]))),
    )


async def act(made: "Coalescer[str, Request, tuple[int, ...]]", plan: Planned) -> None:
    await asyncio.sleep(plan.at)
    work = asyncio.create_task(made.submit(plan.key, plan.request, len(plan.request.values), plan.timeout))
    if plan.leaves_after is not None:
        asyncio.get_running_loop().call_later(plan.leaves_after, work.cancel)
    try:
        plan.outcome = await work
    except (TreadleError, asyncio.CancelledError) as error:
        plan.outcome = error
    plan.ended = now()


@settings(max_examples=300, deadline=None)
@given(
    plans=st.lists(planned(), min_size=1, max_size=14),
    seconds=st.lists(st.sampled_from([0.1, 0.5, 1.0, 3.0]), min_size=1, max_size=6),
    down=st.lists(st.booleans(), max_size=3),
    fault=st.sampled_from([InvalidInput, Internal]),
    rows=st.integers(1, 8),
    calls=st.integers(1, 3),
)
def test_coalesced_is_uncoalesced(
    plans: list[Planned],
    seconds: list[float],
    down: list[bool],
    fault: type[TreadleError],
    rows: int,
    calls: int,
) -> None:
    callee = Callee(
        lambda number: seconds[number % len(seconds)], lambda number: number < len(down) and down[number], fault
    )

    async def scenario() -> None:
        made = coalescer(callee, rows=rows, calls=calls, patience_seconds=NEVER)
        await asyncio.gather(*(act(made, plan) for plan in plans))
        await asyncio.sleep(0.01)  # what has ended is tidied away
        assert asyncio.all_tasks() == {asyncio.current_task()}, "something goes on that nobody waits for"

    run(scenario)
    for plan in plans:
        check_outcome(plan, [call for call in callee.calls if plan.request in call.requests], fault)
    for call in callee.calls:
        check_call(call, plans, rows)
    for key in "ab":
        check_places([call for call in callee.calls if call.key == key], calls)


def check_outcome(plan: Planned, calls: list[Made], fault: type[TreadleError]) -> None:
    """Each gets its own answer or its own error, in its own time."""
    over = plan.at + plan.timeout
    if isinstance(plan.outcome, asyncio.CancelledError):
        assert plan.leaves_after is not None
    elif isinstance(plan.outcome, DeadlineExceeded):
        assert plan.ended == pytest.approx(over), "told as soon as the time is over, and no sooner"
    elif isinstance(plan.outcome, Unavailable):
        assert any(call.down for call in calls)
    elif isinstance(plan.outcome, TreadleError):
        assert type(plan.outcome) is fault
        assert plan.outcome.message == f"row {plan.request.bad} is bad", "rows are counted from the caller's first"
    else:
        assert plan.request.bad is None
        assert plan.outcome == plan.request.answer
    assert plan.ended <= over or plan.ended == pytest.approx(over)


def check_call(call: Made, plans: list[Planned], rows: int) -> None:
    """One key, not too many rows, nobody who has left or whose time is over, time enough for everybody."""
    asked = [next(plan for plan in plans if plan.request is request) for request in call.requests]
    assert {plan.key for plan in asked} == {call.key}
    assert len(asked) == 1 or sum(len(request.values) for request in call.requests) <= rows
    assert [plan.at for plan in asked] == sorted(plan.at for plan in asked)
    for plan in asked:
        assert call.at + call.timeout >= plan.at + plan.timeout or len(asked) == 1 or plan.ended >= call.at
        assert plan.leaves_after is None or call.at <= plan.at + plan.leaves_after or plan.leaves_after == 0.0


def check_places(calls: list[Made], most: int) -> None:
    """No more calls are out than may be; those that a failure was halved into stand for the one that failed."""
    first = [call for call in calls if not any(set(call.requests) <= set(o.requests) for o in calls if o.at < call.at)]
    for call in first:
        assert sum(other.at <= call.at < other.returned for other in first) <= most


def test_a_kind_of_which_nothing_is_about_is_forgotten() -> None:
    callee = Callee()

    async def scenario() -> None:
        made = coalescer(callee, calls=1)
        kinds = [Kind(number) for number in range(3)]
        watched = [weakref.ref(kind) for kind in kinds]
        await asyncio.gather(*(made.submit(kind, Request((1,)), 1, 50.0) for kind in kinds * 3))
        callee.calls.clear()
        kinds.clear()
        await asyncio.sleep(0.01)
        gc.collect()
        assert [kind() for kind in watched] == [None] * 3

    run(scenario)


def test_a_lone_request_is_asked_by_its_own_task() -> None:
    tasks = []

    class Watching(Callee):
        async def __call__(self, *asked: Any) -> list[tuple[int, ...]]:
            tasks.append(asyncio.current_task())
            return await super().__call__(*asked)

    async def scenario() -> None:
        made = coalescer(Watching())
        assert await made.submit("a", Request((1, 2)), 2, 5.0) == (2, 4)
        assert tasks == [asyncio.current_task()]

    run(scenario)


def test_what_comes_while_a_call_is_out_leaves_together() -> None:
    callee = Callee()

    async def scenario() -> None:
        made = coalescer(callee, calls=1)
        first = asyncio.create_task(made.submit("a", Request((9,)), 1, 50.0))
        await asyncio.sleep(0.001)
        await asyncio.gather(first, *(made.submit("a", Request((n,)), 1, 50.0) for n in range(9)))

    run(scenario)
    assert [len(call.requests) for call in callee.calls] == [1, 9]


def test_what_arrives_in_one_turn_of_the_loop_leaves_together() -> None:
    callee = Callee()

    async def scenario() -> None:
        made = coalescer(callee, calls=1)
        await asyncio.gather(*(made.submit("a", Request((n,)), 1, 50.0) for n in range(10)))

    run(scenario)
    assert [[request.values[0] for request in call.requests] for call in callee.calls] == [list(range(10))]


def test_one_bad_request_of_many_costs_few_calls() -> None:
    callee = Callee()
    requests = [Request((n,), bad=0 if n == 37 else None) for n in range(64)]

    async def scenario() -> list[Any]:
        made = coalescer(callee, calls=1)
        return await asyncio.gather(*(made.submit("a", each, 1, 50.0) for each in requests), return_exceptions=True)

    answers = run(scenario)
    assert [number for number, answer in enumerate(answers) if isinstance(answer, InvalidInput)] == [37]
    assert len(callee.calls) <= 2 + 2 * 6


def test_a_call_that_hangs_does_not_hold_up_those_behind_it() -> None:
    callee = Callee(seconds=lambda number: 1000.0 if number < 2 else 0.01)

    async def scenario() -> float:
        made = coalescer(callee, calls=2)
        stuck = []
        for n in range(2):
            stuck.append(asyncio.create_task(made.submit("a", Request((n,)), 1, 100.0)))
            await asyncio.sleep(0.001)
        assert await made.submit("a", Request((7,)), 1, 100.0) == (14,)
        done = now()
        for task in stuck:
            with pytest.raises(DeadlineExceeded):
                await task
        return done

    assert run(scenario) == pytest.approx(0.03)


def test_a_call_that_everybody_has_left_is_given_up() -> None:
    callee = Callee(seconds=lambda number: 10.0)

    async def scenario() -> None:
        made = coalescer(callee, calls=1)
        first = asyncio.create_task(made.submit("a", Request((0,)), 1, 1.0))
        await asyncio.sleep(0.001)
        rest = [asyncio.create_task(made.submit("a", Request((n,)), 1, 3.0)) for n in range(3)]
        await asyncio.wait([first, *rest])

    run(scenario)
    assert [call.returned for call in callee.calls] == [pytest.approx(1.0), pytest.approx(3.0, abs=0.002)]


def test_the_span_of_a_call_for_many_is_the_firsts_and_links_to_the_others() -> None:
    telemetry = Telemetry.recording("gateway")
    seen: list[Any] = []

    async def scenario() -> None:
        made: Any = Coalescer(Callee(), CoalesceLimits(calls=1), telemetry.tracer, now)

        async def ask(number: int) -> None:
            span = telemetry.tracer.start_span(f"request {number}")
            seen.append(span.get_span_context())
            with active(span):
                await made.submit("a", Request((number,)), 1, 50.0)
            span.end()

        await asyncio.gather(*(ask(number) for number in range(200)))

    run(scenario)
    (together,) = [span for span in telemetry.spans if span.name == "treadle.coalesced"]
    assert together.parent is not None
    assert together.parent.span_id == seen[0].span_id
    assert [link.context.span_id for link in together.links] == [context.span_id for context in seen[1:]]
    assert dict(together.attributes or {}) == {"treadle.batch.size": 200, "treadle.batch.requests": 200}
