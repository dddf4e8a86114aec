"""Laws of routing, for all policies and keys."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from treadle.core.column import Column
from treadle.core.errors import FailedPrecondition, InvalidInput
from treadle.core.model_ref import ModelRef
from treadle.gateway.pipeline.routing import parse_pin, pick, pinned, position, route, sticky_key
from treadle.gateway.policy.deployments import Deployment, Share, Step

KEYS = [str(number) for number in range(1_000)]


@st.composite
def traffic(draw: st.DrawFn) -> tuple[Share, ...]:
    cuts = sorted(draw(st.lists(st.integers(0, 100), max_size=4)))
    weights = [b - a for a, b in zip([0, *cuts], [*cuts, 100], strict=True)]
    numbers = draw(st.permutations(range(1, len(weights) + 1)))
    return tuple(Share(ModelRef("m", number), weight) for number, weight in zip(numbers, weights, strict=True))


def share_of(shares: tuple[Share, ...]) -> dict[ModelRef, float]:
    return {share.ref: share.weight for share in shares}


@settings(deadline=None)  # a thousand keys take what time they take
@given(traffic())
def test_weights_are_respected(shares: tuple[Share, ...]) -> None:
    counts: dict[ModelRef, int] = {}
    for key in KEYS:
        ref = pick(shares, position("d", key))
        counts[ref] = counts.get(ref, 0) + 1
    for ref, weight in share_of(shares).items():
        expected, deviation = len(KEYS) * weight / 100, (len(KEYS) * weight / 100 * (1 - weight / 100)) ** 0.5
        assert abs(counts.get(ref, 0) - expected) <= 5 * deviation + 1e-6


@given(traffic(), st.floats(0, 100, exclude_max=True))
def test_a_version_without_weight_is_never_chosen(shares: tuple[Share, ...], point: float) -> None:
    assert share_of(shares)[pick(shares, point)] > 0


@given(traffic(), st.text(min_size=1), st.randoms())
def test_equal_keys_stay_together_whatever_the_order(shares: tuple[Share, ...], key: str, rng: random.Random) -> None:
    shuffled = list(shares)
    rng.shuffle(shuffled)
    assert pick(shares, position("d", key)) == pick(shuffled, position("d", key))


@given(st.integers(0, 100), st.integers(0, 100))
def test_with_two_versions_exactly_the_difference_moves(before: int, after: int) -> None:
    def version(weight: int, point: float) -> ModelRef:
        return pick((Share(ModelRef("m", 1), weight), Share(ModelRef("m", 2), 100 - weight)), point)

    moved = {point for point in range(100) if version(before, point) != version(after, point)}
    assert len(moved) == abs(before - after)


@given(st.text())
def test_positions_lie_in_range(key: str) -> None:
    assert 0 <= position("d", key) < 100


def test_a_deployment_is_one_draw_and_another_is_another() -> None:
    assert [position("a", key) for key in KEYS[:5]] != [position("b", key) for key in KEYS[:5]]


def test_without_a_key_chance_decides() -> None:
    deployment = Deployment("d", (Share(ModelRef("m", 1), 90), Share(ModelRef("m", 2), 10)))
    assert route(deployment, pin=None, key="", random=lambda: 0.89).ref.version == 1
    assert route(deployment, pin=None, key="", random=lambda: 0.91).ref.version == 2


def test_pins_reach_traffic_shadows_and_fallbacks_and_nothing_else() -> None:
    deployment = Deployment(
        "d", (Share(ModelRef("m", 1), 100),), (ModelRef("m", 2),), (Step("rule", ModelRef("m", 3)), Step("none", None))
    )
    for version in (1, 2, 3):
        assert route(deployment, pin=version, key="", random=lambda: 0.0).ref == ModelRef("m", version)
    with pytest.raises(FailedPrecondition):
        route(deployment, pin=4, key="", random=lambda: 0.0)


def test_a_number_means_the_deployments_own_model_before_another_of_that_number() -> None:
    deployment = Deployment("d", (Share(ModelRef("a", 2), 10), Share(ModelRef("b", 2), 90)))
    assert pinned(deployment, 2) == ModelRef("b", 2)


@pytest.mark.parametrize("text", ["", "0", "-1", "x", "1.5", "٣", "9" * 21, "9" * 5_000])
def test_a_pin_is_a_number(text: str) -> None:
    with pytest.raises(InvalidInput):
        parse_pin({"treadle-pin-version": text})


def test_what_a_caller_sticks_by() -> None:
    entities = {"tail": Column.of("tail", ["N1", "N2"])}
    assert sticky_key("mine", "id", entities, "tail") == "mine"
    assert sticky_key("", "id", entities, "tail") == "N1"
    assert sticky_key("", "id", entities, "") == "id"
