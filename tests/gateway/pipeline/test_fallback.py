"""What the pipeline does when others are slow, gone, or refuse: the fallback chain, its time, and what it is told."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from treadle.core.column import Column
from treadle.core.errors import DeadlineExceeded, InvalidInput, Overloaded, TreadleError, Unavailable
from treadle.core.model_ref import ModelRef
from treadle.gateway.policy.deployments import ServedStep
from treadle.rpc.context import VERSION_HEADER, RequestContext

from .core import GONE_TAIL, NEW, OLD, ONLY_OLD, RULE, Features, Models, core, deployment, request, version

A_REQUEST = request(0, 1)
ALWAYS = ServedStep("always", None, (Column.of("y", [0.5]), Column.of("name", ["nobody"])))


def policy(**more: Any) -> Any:
    return deployment(**({"traffic": ONLY_OLD, "timeout_seconds": 10.0} | more))


def raising(error: TreadleError, *refs: ModelRef) -> Callable[..., Any]:
    """Fails for some versions, or for all."""

    async def act(ref: ModelRef, timeout: float) -> None:
        if not refs or ref in refs:
            raise error

    return act


async def too_late(timeout: float) -> None:
    raise DeadlineExceeded(f"nothing came in {timeout:.0f} s")


async def test_late_features_leave_time_to_the_fallback() -> None:
    features = Features(act=too_late)
    async with core(policy(), features) as made:
        answer = await made.ask(A_REQUEST)
        records = made.batches()
    assert answer.served_by == "fallback:rule"
    assert answer.degraded_reason.startswith("features: DEADLINE_EXCEEDED: ")
    assert 3.0 < features.timeouts[0] <= 3.75, "half of the three quarters that the first step has"
    assert [record.model.model for record in records] == ["rule"]


async def test_features_take_half_of_the_time_of_the_step_that_asks() -> None:
    """A fallback with little time of its own must not spend all of it on features."""
    features = Features()
    steps = (ServedStep("short", NEW, timeout_seconds=1.0),)
    versions = {OLD: version(OLD, "load"), NEW: version(NEW, "wind", service="f")}
    made_of = policy(fallbacks=steps, versions=versions)
    async with core(made_of, features, Models(raising(Unavailable("gone"), OLD))) as made:
        assert (await made.ask(A_REQUEST)).served_by == "fallback:short"
    assert 0.4 < features.timeouts[0] <= 0.5


async def test_a_policy_says_how_long_features_may_take() -> None:
    features = Features()
    async with core(policy(feature_timeout_seconds=0.1), features) as made:
        assert (await made.ask(A_REQUEST)).served_by == "traffic"
    assert features.timeouts == [0.1]


@pytest.mark.parametrize("error", [Unavailable("gone"), Overloaded("busy"), DeadlineExceeded("late")])
async def test_a_failing_version_falls_back(error: TreadleError) -> None:
    async with core(policy(), models=Models(raising(error, OLD))) as made:
        answer = await made.ask(A_REQUEST)
    assert (answer.model.model, answer.served_by) == ("rule", "fallback:rule")
    assert answer.degraded_reason == f"m/1: {error.code.name}: {error.message}"


async def test_a_constant_answers_for_the_model_that_was_chosen() -> None:
    async with core(policy(fallbacks=(ALWAYS,)), models=Models(raising(Unavailable("gone")))) as made:
        answer = await made.ask(request(0, 1, 2, outputs=["y"]))
    assert (answer.model.model, answer.model.version, answer.served_by) == ("m", 0, "fallback:always")
    assert list(answer.outputs[0].doubles.values) == [0.5, 0.5]
    assert len(answer.outputs) == 1


async def test_the_callers_mistake_stays_the_callers() -> None:
    models = Models(raising(InvalidInput("x is wrong")))
    async with core(policy(), models=models) as made:
        assert await made.ask(A_REQUEST) == "INVALID_ARGUMENT: x is wrong"
        assert made.records() == []
    assert models.calls == [(OLD, 1)]


async def test_when_nothing_answers_all_reasons_are_told() -> None:
    async with core(policy(), models=Models(raising(Unavailable("gone")))) as made:
        answer = await made.ask(A_REQUEST)
    assert answer == (
        "UNAVAILABLE: nothing in the fallback chain could answer: "
        "m/1: UNAVAILABLE: gone; rule: rule/1: UNAVAILABLE: gone"
    )


async def test_without_a_chain_the_error_is_the_versions_own() -> None:
    models = Models(raising(Overloaded("busy", retry_after_seconds=2.0)))
    async with core(policy(fallbacks=()), models=models) as made:
        from treadle.gateway.api.grpc.prediction_codec import decode_request

        with pytest.raises(Overloaded) as caught:
            await made.pipeline.predict(decode_request(A_REQUEST, {}))
    assert caught.value.retry_after_seconds == 2.0


async def test_a_step_leaves_time_to_the_steps_behind_it() -> None:
    given: list[float] = []

    async def act(ref: ModelRef, timeout: float) -> None:
        given.append(timeout)
        if ref == OLD:
            raise Unavailable("gone")

    async with core(policy(), models=Models(act)) as made:
        await made.ask(A_REQUEST)
    assert given[0] <= 7.5 < given[1]


async def test_features_are_looked_up_once_for_all_steps() -> None:
    features = Features()
    async with core(
        policy(fallbacks=(ServedStep("newer", NEW),)), features, Models(raising(Unavailable("gone")))
    ) as made:
        await made.ask(A_REQUEST)
    assert features.rows == [1]


async def test_failed_features_are_not_waited_for_again() -> None:
    features = Features(Unavailable("away"))
    async with core(policy(fallbacks=(ServedStep("newer", NEW), ServedStep("rule", RULE))), features) as made:
        answer = await made.ask(A_REQUEST)
    assert answer.degraded_reason == "features: UNAVAILABLE: away; newer: features: UNAVAILABLE: away"
    assert features.rows == [1]


async def test_too_many_at_once_are_refused_with_pushback() -> None:
    features = Features(gate=asyncio.Event())
    async with core(policy(), features, in_flight=1) as made:
        first = asyncio.create_task(made.ask(A_REQUEST))
        await features.asked.wait()
        assert (await made.ask(A_REQUEST)).startswith("RESOURCE_EXHAUSTED: the gateway has 1 requests in flight")
        features.gate.set()  # type: ignore[union-attr]  # it was made with one
        assert (await first).served_by == "traffic"
        assert (await made.ask(A_REQUEST)).served_by == "traffic"


@pytest.mark.parametrize("requests", [1, 8])
async def test_a_request_is_admitted_once_and_reaches_its_fallback_when_the_limit_shrinks(requests: int) -> None:
    features = Features(Unavailable("away"), gate=asyncio.Event())
    async with core(policy(), features) as made:
        asked = [asyncio.create_task(made.ask(request(number, number))) for number in range(requests)]
        await features.asked.wait()
        limit = made.admission.enter("d")
        made.admission.leave(limit, None)
        limit.limit = 0.5
        features.gate.set()  # type: ignore[union-attr]  # it was made with one
        answers = await asyncio.gather(*asked)
    assert {answer.served_by for answer in answers} == {"fallback:rule"}


@pytest.mark.parametrize("waiting", ["features", "inference"])
async def test_the_time_of_one_request_ends_its_own_attempt_alone(waiting: str) -> None:
    gate, asked_version = asyncio.Event(), asyncio.Event()

    async def act(ref: ModelRef, timeout: float) -> None:
        if ref == OLD and waiting == "inference":
            asked_version.set()
            await gate.wait()

    features = Features(gate=gate if waiting == "features" else None)
    async with core(policy(sticky_entity=""), features, Models(act)) as made:
        now = asyncio.get_running_loop().time()
        contexts = [RequestContext(deadline=now + seconds) for seconds in (60.0, 2.0, 60.0)]
        asked = [asyncio.create_task(made.ask(request(n, n), each)) for n, each in enumerate(contexts)]
        hasty = await asked[1]
        gate.set()
        answers = [await asked[0], hasty, await asked[2]]
        assert features.rows == [3]
        served = [(row[0], row[2], row[4]) for row in made.records()]
    assert [answer.served_by for answer in answers] == ["traffic", "fallback:rule", "traffic"]
    assert hasty.degraded_reason == "m/1: DEADLINE_EXCEEDED: the step's share of the time is over"
    assert len(served) == 3


async def test_a_requests_own_timeout_is_booked_on_the_version_that_was_asked() -> None:
    """Versions are drawn at random: a second draw would name another version half of the time."""
    gate = asyncio.Event()

    async def act(ref: ModelRef, timeout: float) -> None:
        if ref in (OLD, NEW):
            await gate.wait()

    models = Models(act)
    async with core(deployment(sticky_entity=""), models=models) as made:
        now = asyncio.get_running_loop().time()
        asked = []
        for number in range(12):
            each = request(number, 1)
            each.request_id = ""
            deadline = now + (1.5 if number % 2 else 60.0)
            asked.append(asyncio.create_task(made.ask(each, RequestContext(deadline=deadline))))
        hasty = await asyncio.gather(*asked[1::2])
        gate.set()
        slow = await asyncio.gather(*asked[::2])
        assert made.drawn == 12
        primary = {ref: rows for ref, rows in models.calls if ref != RULE}
    booked = [answer.degraded_reason.partition(":")[0] for answer in hasty]
    by_version = {ref: sum(a.model.version == ref.version for a in slow) + booked.count(str(ref)) for ref in primary}
    assert by_version == primary


async def test_a_shadow_is_recorded_and_does_not_keep_requests_apart() -> None:
    async with core(policy(shadows=(NEW,))) as made:
        answers = await asyncio.gather(*(made.ask(request(number, number)) for number in range(10)))
        await made.shadows.drain()
        assert made.features.rows == [10]
        assert made.models.calls == [(OLD, 10), (NEW, 10)]
        assert made.shadowed == [("m/2", "ok", 10)]
        assert [batch.shadow for batch in made.batches()] == [False, True]
    assert {answer.served_by for answer in answers} == {"traffic"}


async def test_busy_shadows_are_dropped_and_broken_ones_harm_nobody() -> None:
    gate = asyncio.Event()

    async def act(ref: ModelRef, timeout: float) -> None:
        if ref == NEW:
            await gate.wait()
            raise Unavailable("gone")

    async with core(policy(shadows=(NEW,), fallbacks=()), models=Models(act)) as made:
        for number in range(3):
            assert (await made.ask(request(number, number))).served_by == "traffic"
        gate.set()
        await made.shadows.drain()
        assert made.shadowed == [("m/2", "dropped", 1), ("m/2", "dropped", 1), ("m/2", "error", 1)]
        assert len(made.records()) == 3


async def test_a_request_that_asks_for_the_shadow_version_is_not_shadowed_by_it() -> None:
    async with core(policy(shadows=(NEW,))) as made:
        answer = await made.ask(A_REQUEST, RequestContext(metadata={VERSION_HEADER: "2"}))
        await made.shadows.drain()
        assert len(made.records()) == 1
    assert (answer.served_by, answer.model.version) == ("pinned", 2)


async def test_a_cancelled_request_gives_its_place_back() -> None:
    features = Features(gate=asyncio.Event())
    async with core(policy(), features, in_flight=1) as made:
        asked = asyncio.create_task(made.ask(A_REQUEST))
        await features.asked.wait()
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked
        features.gate.set()  # type: ignore[union-attr]  # it was made with one
        assert (await made.ask(A_REQUEST)).served_by == "traffic"
        assert len(made.records()) == 1


async def test_a_missing_value_is_told_with_the_row() -> None:
    async with core(policy()) as made:
        answer = await made.ask(request(0, 1, GONE_TAIL))
    assert answer.served_by == "fallback:rule"
    assert "wind has no usable value in row 1" in answer.degraded_reason
