"""The laws of the pipeline: whatever shares its batch, a request gets, and is recorded as, what it would be alone."""

import asyncio
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from treadle.core.errors import DeadlineExceeded, InvalidInput, TreadleError, Unavailable
from treadle.gateway.policy.deployments import ServedShare
from treadle.rpc.context import VERSION_HEADER, RequestContext

from .core import GONE_TAIL, NEW, OLD, ONLY_OLD, REFUSED, STALE_TAIL, Core, Features, Models, core, deployment, request


def without_ids(answer: Any) -> Any:
    """An answer without the prediction ids, which differ."""
    if not isinstance(answer, str):
        assert len(answer.prediction_ids) == len(set(answer.prediction_ids))
        del answer.prediction_ids[:]
    return answer


def context(number: int, kind: str) -> RequestContext:
    """What the caller of a request sent along."""
    metadata = {VERSION_HEADER: kind.removeprefix("version ")} if kind.startswith("version") else {}
    return RequestContext(trace_id=f"r{number}", metadata=metadata, sampled=kind == "traced")


tails = st.lists(st.sampled_from([1, 2, 3, 4, GONE_TAIL, STALE_TAIL]), min_size=1, max_size=3)
loads = st.sampled_from([1.0, 2.0, REFUSED - 1.0, REFUSED])
contexts = st.sampled_from(["plain", "plain", "traced", "version 1", "version 2", "version 7"])
options = st.sampled_from(
    [{}, {}, {}, {"return_features": True}, {"outputs": ["y"]}, {"outputs": ["z"]}, {"sticky_key": "k"}]
)
policies = st.fixed_dictionaries(
    {},
    optional={
        "fallbacks": st.just(()),
        "strict": st.just(True),
        "shadows": st.just((NEW,)),
        "traffic": st.just((ServedShare(NEW, 100),)),
    },
)
errors = st.sampled_from([None, None, Unavailable("away"), InvalidInput("no such key"), DeadlineExceeded("late")])


@settings(deadline=None)
@given(st.lists(st.tuples(tails, loads, options, contexts), min_size=1, max_size=20), policies, errors)
def test_each_request_gets_what_it_would_have_got_alone(
    asked: list[tuple[list[int], float, dict[str, Any], str]], more: dict[str, Any], error: TreadleError | None
) -> None:
    requests = [request(number, *tail, load=load, **other) for number, (tail, load, other, _) in enumerate(asked)]
    kinds = [context(number, kind) for number, (*_, kind) in enumerate(asked)]

    async def answers(*, at_once: bool) -> Any:
        async with core(deployment(**more), Features(error)) as made:
            made.shadows._most = 100
            if at_once:
                found = await asyncio.gather(*map(made.ask, requests, kinds))
            else:
                found = [await made.ask(*each) for each in zip(requests, kinds, strict=True)]
            await made.shadows.drain()
            return [without_ids(answer) for answer in found], made.records()

    async def scenario() -> None:
        assert await answers(at_once=True) == await answers(at_once=False)

    asyncio.run(scenario())


async def test_concurrent_requests_share_one_lookup_one_inference_and_one_record() -> None:
    async with core(deployment(traffic=ONLY_OLD)) as made:
        answers = await asyncio.gather(*(made.ask(request(number, number)) for number in range(10)))
        assert made.features.rows == [10]
        assert made.models.calls == [(OLD, 10)]
        assert len({answer.prediction_ids[0] for answer in answers}) == 10
        (batch,) = made.batches()
    assert list(batch.trace_ids) == [f"r{number}" for number in range(10)]
    assert batch.latency_seconds == pytest.approx(np.mean(batch.latencies_seconds))


async def test_traced_versioned_and_shadowed_requests_share_batches_with_all_others() -> None:
    kinds = ["plain", "traced", "version 1", "plain", "traced"]
    async with core(deployment(traffic=ONLY_OLD, shadows=(NEW,))) as made:
        await asyncio.gather(*(made.ask(request(n, n), context(n, kind)) for n, kind in enumerate(kinds)))
        await made.shadows.drain()
        assert made.features.rows == [5], "one lookup, which the shadow uses again"
        assert made.models.calls == [(OLD, 5), (NEW, 5)]


async def test_requests_of_several_rows_share_a_batch() -> None:
    async with core(deployment(traffic=ONLY_OLD)) as made:
        answers = await asyncio.gather(
            made.ask(request(0, 1, 2)), made.ask(request(1, 3)), made.ask(request(2, 4, 5, 6))
        )
        assert made.models.calls == [(OLD, 6)]
    assert [len(answer.prediction_ids) for answer in answers] == [2, 1, 3]


async def test_what_failed_for_a_whole_batch_is_asked_once() -> None:
    async with core(deployment(), Features(Unavailable("away"))) as made:
        answers = await asyncio.gather(*(made.ask(request(number, 1)) for number in range(10)))
        assert made.features.rows == [10]
    assert {answer.served_by for answer in answers} == {"fallback:rule"}
    assert {answer.degraded_reason for answer in answers} == {"features: UNAVAILABLE: away"}


async def test_failed_requests_go_on_as_one_smaller_batch() -> None:
    async with core(deployment(traffic=ONLY_OLD)) as made:
        tails = [1, GONE_TAIL, 2, GONE_TAIL]
        answers = await asyncio.gather(*(made.ask(request(number, tail)) for number, tail in enumerate(tails)))
        assert made.models.calls == [(OLD, 2), (made.policy.fallbacks[0].ref, 2)]
    assert [answer.served_by for answer in answers] == ["traffic", "fallback:rule"] * 2


async def test_an_answer_for_which_nobody_waits_any_more_is_not_recorded() -> None:
    features = Features(gate=asyncio.Event())
    async with core(deployment(traffic=ONLY_OLD), features) as made:
        asked = [asyncio.create_task(made.ask(request(number, number))) for number in range(3)]
        await features.asked.wait()
        asked[1].cancel()
        await asyncio.wait(asked[1:2])
        features.gate.set()  # type: ignore[union-attr]  # it was made with one
        await asyncio.gather(*asked, return_exceptions=True)
        assert [record[0] for record in made.records()] == ["r0", "r2"]


async def test_a_batch_that_all_callers_have_left_is_cancelled() -> None:
    features = Features(gate=asyncio.Event())
    async with core(deployment(traffic=ONLY_OLD), features) as made:
        asked = [asyncio.create_task(made.ask(request(number, number))) for number in range(3)]
        await features.asked.wait()
        for task in asked:
            task.cancel()
        await asyncio.gather(*asked, return_exceptions=True)
        await asyncio.sleep(0.01)
        assert asyncio.all_tasks() == {asyncio.current_task()}
        assert made.models.calls == []


async def test_tenants_never_share_a_batch() -> None:
    async with core(deployment(traffic=ONLY_OLD)) as made:
        contexts = [RequestContext(tenant=tenant) for tenant in "stst"]
        await asyncio.gather(*(made.ask(request(number, number), each) for number, each in enumerate(contexts)))
        assert made.features.rows == [2, 2]


async def test_a_request_keeps_the_version_that_was_drawn_for_it() -> None:
    models = Models()
    async with core(deployment(sticky_entity="", fallbacks=()), models=models) as made:
        asked = [request(number, 1, load=REFUSED - 1.0) for number in range(20)]
        for each in asked:
            each.request_id = ""
        answers = await asyncio.gather(*map(made.ask, asked))
        drawn = dict(models.calls[:2])
        alone = Counter(ref for ref, rows in models.calls if rows == 1)
        assert made.drawn == 20
    assert all(answer.startswith("INVALID_ARGUMENT") for answer in answers)
    assert drawn == dict(alone)
    assert sorted(drawn) == [OLD, NEW]


async def test_a_refused_row_is_named_by_its_number_in_its_own_request() -> None:
    async with core(deployment(traffic=ONLY_OLD, fallbacks=())) as made:
        answers = await asyncio.gather(made.ask(request(0, 1, 2)), made.ask(request(1, 3, GONE_TAIL)))
    assert (
        answers[1]
        == "UNAVAILABLE: features: wind has no usable value in row 1, and input 'wind' of the model needs one"
    )


async def test_an_unexpected_error_reaches_every_request_of_the_batch() -> None:
    async def act(*_: object) -> None:
        raise ZeroDivisionError("a bug")

    async def outcome(made: Core, number: int) -> Any:
        try:
            return await made.ask(request(number, number))
        except ZeroDivisionError as error:
            return str(error)

    async with core(deployment(traffic=ONLY_OLD), models=Models(act)) as made:
        assert await asyncio.gather(*(outcome(made, number) for number in range(3))) == ["a bug"] * 3
