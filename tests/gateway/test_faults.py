"""What the gateway does when others are slow, gone, changed, or ask for too much. The hops here are small and real."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pytest

from treadle.core.column import Column
from treadle.core.errors import DeadlineExceeded, InvalidInput, Overloaded, TreadleError, Unavailable
from treadle.core.model_ref import ModelRef
from treadle.gateway.pipeline.admission import Admission, Limits
from treadle.gateway.pipeline.chain import Chain, Remembered
from treadle.gateway.pipeline.feature_batch import Features, FeatureValues
from treadle.gateway.pipeline.ids import PredictionIds
from treadle.gateway.pipeline.request import Ask, Tensors
from treadle.gateway.pipeline.shadows import Shadows
from treadle.gateway.policy.deployments import Deployment, FeatureNeeds, ServedVersion, Share, Snapshot, Step
from treadle.plugins.tensor_spec import TensorSpec
from treadle.plugins.tensors import Signature

A, B = ModelRef("m", 1), ModelRef("m", 2)


class Lookup:
    """Gives `wind` = 1 for each row, or does as told."""

    def __init__(self, act: Callable[[float], Any] | None = None) -> None:
        self.act = act
        self.timeouts: list[float] = []

    async def look_up(
        self, service: str, entities: Sequence[Column], context: Sequence[Column], now_micros: int, timeout: float
    ) -> Features:
        self.timeouts.append(timeout)
        if self.act is not None:
            await self.act(timeout)
        rows = entities[0].rows
        values = FeatureValues(Column.of("wind", np.ones(rows)), np.ones(rows, np.uint8), np.zeros(rows))
        return Features.of({"wind": values}, (*entities, *context), rows)


class Models:
    """Version 1 needs `wind`, version 2 `distance`; each answers with its input, or does as told."""

    def __init__(self, act: Callable[[ModelRef, float], Any] | None = None) -> None:
        self.act = act
        self.calls: list[ModelRef] = []

    async def infer(self, ref: ModelRef, inputs: Tensors, outputs: Sequence[str], timeout: float) -> Tensors:
        self.calls.append(ref)
        if self.act is not None:
            await self.act(ref, timeout)
        return {"y": next(iter(inputs.values()))}


def version(ref: ModelRef, column: str, service: str = "") -> ServedVersion:
    return ServedVersion(
        ref, Signature((TensorSpec(column, "FP64", (-1,)),), (TensorSpec("y", "FP64", (-1,)),)), service
    )


def deployment(**more: Any) -> Deployment:
    fields: dict[str, Any] = {
        "name": "d",
        "traffic": (Share(A, 100),),
        "fallbacks": (Step("older", B),),
        "timeout_seconds": 1.0,
        "versions": {A: version(A, "wind", "f"), B: version(B, "distance")},
        "feature_services": {"f": FeatureNeeds("f", {"tail": "STRING"}, {}, frozenset())},
    }
    return Deployment(**(fields | more))


ASK = Ask("d", {"tail": Column.of("tail", ["N1"])}, {"distance": Column.of("distance", [7.0])})


@asynccontextmanager
async def chain(features: Any, models: Any, policy: Deployment, in_flight: int = 10) -> AsyncIterator[Any]:
    remembered: list[Remembered] = []
    ended: list[tuple[str, str]] = []
    shadows = Shadows(1, lambda version, how: ended.append((version, how)), lambda version, error: None)
    made = Chain(
        lambda: Snapshot({"d": policy}),
        Admission(Limits(100, in_flight)),
        features,
        models,
        shadows,
        PredictionIds(lambda: 0.0, lambda bits: 0),
        remembered.append,
        lambda: 0.5,
    )
    yield made, remembered, ended, shadows
    await shadows.close()


async def late(timeout: float) -> None:
    raise DeadlineExceeded(f"nothing came in {timeout:.0f} s")


def raising(error: TreadleError) -> Callable[..., Any]:
    async def act(*_: object) -> None:
        raise error

    return act


async def test_late_features_leave_half_of_the_time_to_the_fallback() -> None:
    features = Lookup(late)
    async with chain(features, Models(), deployment(timeout_seconds=10.0)) as (made, remembered, _, _):
        answer = await made.predict(ASK)
    assert answer.served_by == "fallback:older"
    assert answer.degraded_reason.startswith("features: DEADLINE_EXCEEDED: ")
    assert 4.0 < features.timeouts[0] <= 5.0
    assert [done.answer.ref for done in remembered] == [B]


async def test_a_policy_says_how_long_features_may_take() -> None:
    features = Lookup()
    async with chain(features, Models(), deployment(feature_timeout_seconds=0.1)) as (made, *_):
        assert (await made.predict(ASK)).served_by == "traffic"
    assert features.timeouts == [0.1]


@pytest.mark.parametrize("error", [Unavailable("gone"), Overloaded("busy"), DeadlineExceeded("late")])
async def test_a_failing_model_falls_back(error: TreadleError) -> None:
    async def act(ref: ModelRef, timeout: float) -> None:
        if ref == A:
            raise error

    async with chain(Lookup(), Models(act), deployment()) as (made, *_):
        answer = await made.predict(ASK)
    assert (answer.ref, answer.served_by) == (B, "fallback:older")
    assert answer.degraded_reason == f"m/1: {error.code.name}: {error.message}"


async def test_the_callers_mistake_stays_the_callers() -> None:
    models = Models(raising(InvalidInput("x is wrong")))
    async with chain(Lookup(), models, deployment()) as (made, remembered, *_):
        with pytest.raises(InvalidInput, match="x is wrong"):
            await made.predict(ASK)
    assert models.calls == [A]
    assert remembered == []


async def test_when_nothing_answers_all_reasons_are_told() -> None:
    async with chain(Lookup(), Models(raising(Unavailable("gone"))), deployment()) as (made, *_):
        with pytest.raises(Unavailable, match=r"m/1: UNAVAILABLE: gone; older: m/2: UNAVAILABLE: gone"):
            await made.predict(ASK)


async def test_without_a_chain_the_error_is_the_models_own() -> None:
    models = Models(raising(Overloaded("busy", retry_after_seconds=2.0)))
    async with chain(Lookup(), models, deployment(fallbacks=())) as (made, *_):
        with pytest.raises(Overloaded) as caught:
            await made.predict(Ask("d", ASK.entities))
    assert caught.value.retry_after_seconds == 2.0


async def test_a_primary_leaves_time_to_the_net_behind_it() -> None:
    given: list[tuple[ModelRef, float]] = []

    async def act(ref: ModelRef, timeout: float) -> None:
        given.append((ref, timeout))
        if ref == A:
            raise Unavailable("gone")

    async with chain(Lookup(), Models(act), deployment(timeout_seconds=10.0)) as (made, *_):
        await made.predict(ASK)
    assert given[0][1] <= 7.5 < given[1][1]


async def test_features_are_asked_once_for_all_steps() -> None:
    features = Lookup()
    policy = deployment(
        versions={A: version(A, "wind", "f"), B: version(B, "wind", "f")},
        feature_services={"f": FeatureNeeds("f", {"tail": "STRING"}, {}, frozenset())},
    )
    async with chain(features, Models(raising(Unavailable("gone"))), policy) as (made, *_):
        with pytest.raises(Unavailable):
            await made.predict(Ask("d", ASK.entities))
    assert len(features.timeouts) == 1


async def test_too_many_at_once_are_refused_with_pushback() -> None:
    waiting, go = asyncio.Event(), asyncio.Event()

    async def act(ref: ModelRef, timeout: float) -> None:
        waiting.set()
        await go.wait()

    async with chain(Lookup(), Models(act), deployment(), in_flight=1) as (made, *_):
        first = asyncio.create_task(made.predict(ASK))
        await waiting.wait()
        with pytest.raises(Overloaded) as caught:
            await made.predict(ASK)
        assert caught.value.retry_after_seconds
        go.set()
        assert (await first).served_by == "traffic"
        assert (await made.predict(ASK)).served_by == "traffic"


async def test_a_cancelled_call_gives_its_place_back() -> None:
    waiting = asyncio.Event()

    async def act(ref: ModelRef, timeout: float) -> None:
        waiting.set()
        await asyncio.Event().wait()

    models = Models(act)
    async with chain(Lookup(), models, deployment(), in_flight=1) as (made, remembered, *_):
        call = asyncio.create_task(made.predict(ASK))
        await waiting.wait()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        models.act = None
        assert (await made.predict(ASK)).served_by == "traffic"
    assert len(remembered) == 1


async def test_busy_shadows_are_dropped_and_broken_ones_harm_nobody() -> None:
    go = asyncio.Event()

    async def act(ref: ModelRef, timeout: float) -> None:
        if ref == B:
            await go.wait()
            raise Unavailable("gone")

    policy = deployment(shadows=(B,), fallbacks=())
    async with chain(Lookup(), Models(act), policy) as (made, remembered, ended, shadows):
        for _ in range(3):
            assert (await made.predict(ASK)).served_by == "traffic"
        go.set()
        await shadows.drain()
    assert ended == [("m/2", "dropped"), ("m/2", "dropped"), ("m/2", "error")]
    assert len(remembered) == 3
