"""Laws of routing, for all policies and keys."""

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.trace import INVALID_SPAN_CONTEXT

from treadle.core.column import Column
from treadle.core.errors import FailedPrecondition, InvalidInput
from treadle.core.model_ref import ModelRef
from treadle.gateway.pipeline.batch.request import PredictionRequest
from treadle.gateway.pipeline.batch.request_batch import PendingRequest, RequestBatch
from treadle.gateway.pipeline.stages.routing import (
    PINNED,
    TRAFFIC,
    Route,
    choose,
    parse_version,
    partition_by_version,
    pick,
    pinned,
    position,
)
from treadle.gateway.policy.deployments import ServedDeployment, ServedShare, ServedStep
from treadle.rpc.context import RequestContext

from .core import decoded_request

KEYS = [str(number) for number in range(1_000)]


@st.composite
def traffic(draw: st.DrawFn) -> tuple[ServedShare, ...]:
    cuts = sorted(draw(st.lists(st.integers(0, 100), max_size=4)))
    weights = [b - a for a, b in zip([0, *cuts], [*cuts, 100], strict=True)]
    numbers = draw(st.permutations(range(1, len(weights) + 1)))
    return tuple(ServedShare(ModelRef("m", number), weight) for number, weight in zip(numbers, weights, strict=True))


def share_of(shares: tuple[ServedShare, ...]) -> dict[ModelRef, float]:
    return {share.ref: share.weight for share in shares}


@settings(deadline=None)  # a thousand keys take what time they take
@given(traffic())
def test_weights_are_respected(shares: tuple[ServedShare, ...]) -> None:
    counts: dict[ModelRef, int] = {}
    for key in KEYS:
        ref = pick(shares, position("d", key))
        counts[ref] = counts.get(ref, 0) + 1
    for ref, weight in share_of(shares).items():
        expected, deviation = len(KEYS) * weight / 100, (len(KEYS) * weight / 100 * (1 - weight / 100)) ** 0.5
        assert abs(counts.get(ref, 0) - expected) <= 5 * deviation + 1e-6


@given(traffic(), st.floats(0, 100, exclude_max=True))
def test_a_version_without_weight_is_never_chosen(shares: tuple[ServedShare, ...], point: float) -> None:
    assert share_of(shares)[pick(shares, point)] > 0


@given(traffic(), st.text(min_size=1), st.randoms())
def test_equal_keys_stay_together_whatever_the_order(
    shares: tuple[ServedShare, ...], key: str, rng: random.Random
) -> None:
    shuffled = list(shares)
    rng.shuffle(shuffled)
    assert pick(shares, position("d", key)) == pick(shuffled, position("d", key))


@given(st.integers(0, 100), st.integers(0, 100))
def test_with_two_versions_exactly_the_difference_moves(before: int, after: int) -> None:
    def version(weight: int, point: float) -> ModelRef:
        return pick((ServedShare(ModelRef("m", 1), weight), ServedShare(ModelRef("m", 2), 100 - weight)), point)

    moved = {point for point in range(100) if version(before, point) != version(after, point)}
    assert len(moved) == abs(before - after)


@given(st.text())
def test_positions_lie_in_range(key: str) -> None:
    assert 0 <= position("d", key) < 100


def test_a_deployment_is_one_draw_and_another_is_another() -> None:
    assert [position("a", key) for key in KEYS[:5]] != [position("b", key) for key in KEYS[:5]]


def test_without_a_key_chance_decides() -> None:
    deployment = ServedDeployment("d", (ServedShare(ModelRef("m", 1), 90), ServedShare(ModelRef("m", 2), 10)))
    assert choose(deployment, "", lambda: 0.89).version == 1
    assert choose(deployment, "", lambda: 0.91).version == 2


def test_pins_reach_traffic_shadows_and_fallbacks_and_nothing_else() -> None:
    deployment = ServedDeployment(
        "d",
        (ServedShare(ModelRef("m", 1), 100),),
        (ModelRef("m", 2),),
        (ServedStep("rule", ModelRef("m", 3)), ServedStep("none", None)),
    )
    for version in (1, 2, 3):
        assert pinned(deployment, version) == ModelRef("m", version)
    with pytest.raises(FailedPrecondition):
        pinned(deployment, 4)


def test_a_number_means_the_deployments_own_model_before_another_of_that_number() -> None:
    deployment = ServedDeployment("d", (ServedShare(ModelRef("a", 2), 10), ServedShare(ModelRef("b", 2), 90)))
    assert pinned(deployment, 2) == ModelRef("b", 2)


@pytest.mark.parametrize("text", ["", "0", "-1", "x", "1.5", "٣", "9" * 21, "9" * 5_000])
def test_a_pin_is_a_number(text: str) -> None:
    with pytest.raises(InvalidInput):
        parse_version({"treadle-pin-version": text})


def batch_of(deployment: ServedDeployment, *requests: PredictionRequest) -> RequestBatch:
    pending = [PendingRequest(each, RequestContext(), 0.0, 1.0, INVALID_SPAN_CONTEXT, each.rows) for each in requests]
    return RequestBatch.join(deployment, pending)


def request(*tails: str, **options: Any) -> PredictionRequest:
    return decoded_request("d", entities=[Column.of("tail", tails or ["N1"])], **options)


HALVES = (ServedShare(ModelRef("m", 1), 50), ServedShare(ModelRef("m", 2), 50))


def never() -> float:
    raise AssertionError("chance was asked")


@pytest.mark.parametrize(
    ("sticky_entity", "options", "key"),
    [
        ("tail", {"sticky_key": "mine", "request_id": "id"}, "mine"),
        ("tail", {"request_id": "id"}, None),  # the first row of the entity column
        ("", {"request_id": "id"}, "id"),
        ("absent", {"request_id": "id"}, "id"),
    ],
)
def test_a_request_sticks_by_its_key_else_by_its_entity_else_by_its_id(
    sticky_entity: str, options: dict[str, str], key: str | None
) -> None:
    deployment = ServedDeployment("d", HALVES, sticky_entity=sticky_entity)
    for number in range(40):
        own = {name: f"{text}{number}" for name, text in options.items()}
        batch = batch_of(deployment, request("x", "y"), request(f"N{number}", "other", **own))
        wanted = pick(HALVES, position("d", f"N{number}" if key is None else f"{key}{number}"))
        parts = partition_by_version(batch, lambda: 0.0)
        assert 1 in parts[wanted]
        assert batch.requests[1].route == TRAFFIC


@given(
    traffic(),
    st.lists(
        st.fixed_dictionaries(
            {"version": st.none() | st.none() | st.integers(1, 6)},
            optional={"sticky_key": st.text(min_size=1), "request_id": st.text(min_size=1)},
        ),
        min_size=1,
        max_size=12,
    ),
    st.integers(0, 99),
)
def test_each_request_of_a_batch_goes_where_it_would_go_alone(
    shares: tuple[ServedShare, ...], options: list[dict[str, Any]], seed: int
) -> None:
    deployment = ServedDeployment("d", shares)
    batch = batch_of(deployment, *(request(**each) for each in options))
    parts = partition_by_version(batch, random.Random(seed).random)
    found = {index: choice for choice, indices in parts.items() for index in indices}
    assert sum(map(len, parts.values())) == len(found), "no request goes to two versions"
    chance = random.Random(seed).random
    for index, each in enumerate(options):
        key = each.get("sticky_key") or each.get("request_id") or ""
        version = each["version"]
        if version is not None and version not in [share.ref.version for share in shares]:
            assert index not in found
            assert isinstance(batch.requests[index].outcome, FailedPrecondition)
        else:
            alone = choose(deployment, key, chance) if version is None else pinned(deployment, version)
            assert found[index] == alone
            assert batch.requests[index].route == (TRAFFIC if version is None else PINNED)
            assert not batch.requests[index].is_done


def test_one_version_takes_a_batch_as_it_is_and_chance_is_not_asked() -> None:
    deployment = ServedDeployment("d", HALVES[:1])
    batch = batch_of(deployment, request(), request("N1", "N2"))
    assert partition_by_version(batch, never) == {ModelRef("m", 1): [0, 1]}


async def routed(batch: RequestBatch) -> list[RequestBatch]:
    parts = []

    async def next_stage(part: RequestBatch) -> None:
        parts.append(part)

    await Route(never)(batch, next_stage)
    return parts


async def test_each_version_is_handed_the_batch_of_its_requests() -> None:
    deployment = ServedDeployment("d", HALVES)
    requests = [request(f"N{number}", f"M{number}", version=number % 2 + 1) for number in range(5)]
    batch = batch_of(deployment, *requests)
    parts = {part.chosen.version: part for part in await routed(batch)}
    assert sorted(parts) == [1, 2]
    for version, part in parts.items():
        assert (part.step.ref, part.step.name) == (ModelRef("m", version), "")
        assert part.requests == batch.requests[version - 1 :: 2]
        tails = [f"{letter}{number}" for number in range(version - 1, 5, 2) for letter in "NM"]
        assert part.entities["tail"].values.tolist() == tails


async def test_a_request_for_a_version_that_is_not_there_fails_and_the_others_go_on() -> None:
    batch = batch_of(ServedDeployment("d", HALVES), request(version=1), request(version=7), request(version=1))
    (part,) = await routed(batch)
    assert part.requests == [batch.requests[0], batch.requests[2]]
    assert isinstance(batch.requests[1].outcome, FailedPrecondition)


async def test_a_batch_of_which_no_request_has_a_version_goes_nowhere() -> None:
    batch = batch_of(ServedDeployment("d", HALVES), request(version=7))
    assert await routed(batch) == []
