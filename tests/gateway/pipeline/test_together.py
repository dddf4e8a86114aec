"""Plain requests answered as rows of one: each gets, and is recorded as, what it would be alone."""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.trace import NoOpTracer

from treadle.core.column import Column
from treadle.core.errors import DeadlineExceeded, InvalidInput, TreadleError, Unavailable
from treadle.core.model_ref import ModelRef
from treadle.gateway.api.grpc.prediction_servicer import PredictionServicer
from treadle.gateway.ledger.recorder import Recorder
from treadle.gateway.ledger.spool import Spool, SpoolLimits, read
from treadle.gateway.metrics import GatewayMeters
from treadle.gateway.pipeline.admission import Admission, Limits
from treadle.gateway.pipeline.chain import Chain
from treadle.gateway.pipeline.feature_batch import MISSING, PRESENT, STALE, Features, FeatureValues
from treadle.gateway.pipeline.ids import PredictionIds
from treadle.gateway.pipeline.lane import CoalesceLimits
from treadle.gateway.pipeline.request import Tensors
from treadle.gateway.pipeline.shadows import Shadows
from treadle.gateway.pipeline.together import Together
from treadle.gateway.policy.deployments import Deployment, FeatureNeeds, ServedVersion, Share, Snapshot, Step
from treadle.observability.telemetry.metrics import Meters
from treadle.plugins.tensor_spec import TensorSpec
from treadle.plugins.tensors import Signature
from treadle.rpc.codec.columns import encode
from treadle.rpc.context import VERSION_HEADER, RequestContext, request_scope
from treadle.v1.evaluation_pb2 import PredictionBatch
from treadle.v1.prediction_pb2 import PredictRequest, PredictResponse

OLD, NEW, RULE = ModelRef("m", 1), ModelRef("m", 2), ModelRef("rule", 1)
REFUSED, GONE_FEATURE, STALE_FEATURE = 13.0, 17, 19


class Lookup:
    """`wind` is the tail's number; missing or stale for two of them. Fails, or waits at the gate, when told."""

    def __init__(self, error: TreadleError | None = None, gate: asyncio.Event | None = None) -> None:
        self.error, self.gate = error, gate
        self.rows: list[int] = []
        self.asked = asyncio.Event()

    async def look_up(
        self, service: str, entities: Sequence[Column], context: Sequence[Column], now_micros: int, timeout: float
    ) -> Features:
        tails = entities[0].values
        self.rows.append(len(tails))
        self.asked.set()
        await (self.gate.wait() if self.gate else asyncio.sleep(0))
        if self.error is not None:
            raise self.error
        statuses = np.full(len(tails), PRESENT, np.uint8)
        statuses[tails == GONE_FEATURE] = MISSING
        statuses[tails == STALE_FEATURE] = STALE
        nulls = statuses == MISSING
        wind = Column("wind", "FP64", tails.astype(float), nulls if nulls.any() else None)
        return Features.of({"wind": FeatureValues(wind, statuses, np.zeros(len(tails)))}, entities, len(tails))


class Models:
    """The sum of the inputs, plus the version; a row that sums up to `REFUSED` is refused."""

    def __init__(self) -> None:
        self.calls: list[tuple[ModelRef, int]] = []

    async def infer(self, ref: ModelRef, inputs: Tensors, outputs: Sequence[str], timeout: float) -> Tensors:
        total = np.sum(list(inputs.values()), axis=0)
        self.calls.append((ref, len(total)))
        await asyncio.sleep(0)
        if (total == REFUSED).any():
            raise InvalidInput.at("x", "is refused")
        return {"y": total + ref.version, "name": np.array([str(ref)] * len(total), object)}


def version(ref: ModelRef, *columns: str, service: str = "") -> ServedVersion:
    inputs = tuple(TensorSpec(column, "FP64", (-1,)) for column in columns)
    outputs = (TensorSpec("y", "FP64", (-1,)), TensorSpec("name", "STRING", (-1,)))
    return ServedVersion(ref, Signature(inputs, outputs), service)


def deployment(**more: Any) -> Deployment:
    fields: dict[str, Any] = {
        "name": "d",
        "traffic": (Share(OLD, 60), Share(NEW, 40)),
        "fallbacks": (Step("rule", RULE),),
        "sticky_entity": "tail",
        "versions": {
            OLD: version(OLD, "wind", "load", service="f"),
            NEW: version(NEW, "wind", "load", service="f"),
            RULE: version(RULE, "load"),
        },
        "feature_services": {"f": FeatureNeeds("f", {"tail": "INT64"}, {}, frozenset())},
    }
    return Deployment(**(fields | more))


class Door:
    """A gateway's core between fakes, with a real spool."""

    def __init__(self, folder: Path, policy: Deployment, lookup: Lookup, *, together: bool) -> None:
        self.lookup, self.models = lookup, Models()
        self.spool = Spool(folder, SpoolLimits(1 << 20, 1 << 20, 0.0), lambda: 0.0, lambda _: None)
        meters = GatewayMeters(Meters())
        recorder = Recorder(self.spool, meters, lambda: 1.0)
        self.admission = Admission(Limits(100, 1_000))
        self.shadows = Shadows(100, lambda *_: None, lambda *_: None)
        chain = Chain(
            lambda: Snapshot({"d": policy}),
            self.admission,
            lookup,
            self.models,
            self.shadows,
            PredictionIds(lambda: 0.0, random.Random(1).getrandbits),
            recorder.remember,
            random.Random(1).random,
        )
        grouped = Together(chain, recorder.remember_rows, CoalesceLimits(), NoOpTracer()) if together else None
        self.servicer = PredictionServicer(chain, grouped, 64)

    async def ask(self, request: PredictRequest, call: RequestContext | None = None) -> PredictResponse | str:
        with request_scope(call or RequestContext(trace_id=request.request_id)):
            try:
                return await self.servicer.Predict(request, None)  # type: ignore[arg-type]  # it asks no context
            except TreadleError as error:
                return f"{error.code.name}: {error.message}"

    def records(self) -> list[tuple[Any, ...]]:
        """Each recorded prediction: what it answered, to whom, on what grounds."""
        found = []
        for segment in self.spool.due():
            for data in read(segment).records:
                found += list(_predictions(PredictionBatch.FromString(data)))
        return sorted(found)


def _predictions(batch: PredictionBatch) -> Any:
    rows = len(batch.prediction_ids)
    assert len(batch.latencies_seconds) in (0, rows)
    assert min(batch.latency_seconds, *batch.latencies_seconds, 0.0) >= 0.0
    columns = [*batch.entities, *batch.outputs, *(each.column for each in batch.features)]
    cells = [decoded(column) for column in columns]
    for row in range(rows):
        yield (
            batch.trace_ids[row] if batch.trace_ids else batch.trace_id,
            batch.model.model,
            batch.model.version,
            batch.served_by,
            batch.degraded_reason,
            *(str(values[row]) for values in cells),
            *(each.statuses[row] for each in batch.features),
        )


def decoded(column: Any) -> Any:
    from treadle.rpc.codec.columns import decode

    found = decode(column)
    return ["null" if found.nulls is not None and found.nulls[row] else value for row, value in enumerate(found.values)]


@asynccontextmanager
async def door(policy: Deployment, lookup: Lookup, *, together: bool) -> AsyncIterator[Door]:
    with TemporaryDirectory() as folder:
        made = Door(Path(folder), policy, lookup, together=together)
        yield made
        await made.shadows.close()
        assert made.admission.in_flight == 0


def request(number: int, tail: int, load: float = 1.0, **more: Any) -> PredictRequest:
    return PredictRequest(
        deployment="d",
        request_id=f"r{number}",
        entities=[encode(Column.of("tail", [tail]))],
        context=[encode(Column.of("load", [load]))],
        **more,
    )


def without_ids(answer: PredictResponse | str) -> Any:
    if isinstance(answer, str):
        return answer
    assert len(answer.prediction_ids) == 1
    del answer.prediction_ids[:]
    return answer


tails = st.sampled_from([1, 2, 3, 4, GONE_FEATURE, STALE_FEATURE])
loads = st.sampled_from([1.0, 2.0, REFUSED - 1.0, REFUSED])
policies = st.fixed_dictionaries(
    {},
    optional={
        "fallbacks": st.just(()),
        "strict": st.just(True),
        "shadows": st.just((NEW,)),
        "traffic": st.just((Share(NEW, 100),)),
    },
)
lookups = st.sampled_from([None, None, Unavailable("away"), InvalidInput("no such key"), DeadlineExceeded("late")])
special = st.sampled_from([{}, {}, {}, {"return_features": True}, {"outputs": ["y"]}, {"sticky_key": "k"}])


@settings(deadline=None)
@given(st.lists(st.tuples(tails, loads, special), min_size=1, max_size=20), policies, lookups)
def test_each_gets_what_it_would_have_got_alone(
    asked: list[tuple[int, float, dict[str, Any]]], more: dict[str, Any], error: TreadleError | None
) -> None:
    requests = [request(number, tail, load, **other) for number, (tail, load, other) in enumerate(asked)]

    async def answers(*, together: bool) -> Any:
        async with door(deployment(**more), Lookup(error), together=together) as made:
            if together:
                found = await asyncio.gather(*map(made.ask, requests))
            else:
                found = [await made.ask(each) for each in requests]
            await asyncio.sleep(0.01 if "shadows" in more else 0)
            return [without_ids(answer) for answer in found], made.records()

    async def scenario() -> None:
        assert await answers(together=True) == await answers(together=False)

    asyncio.run(scenario())


async def test_those_about_at_the_same_time_are_one_lookup_one_inference_and_one_record() -> None:
    async with door(deployment(traffic=(Share(OLD, 100),)), Lookup(), together=True) as made:
        answers = await asyncio.gather(*(made.ask(request(number, number)) for number in range(10)))
        assert made.lookup.rows == [10]
        assert made.models.calls == [(OLD, 10)]
        assert len({answer.prediction_ids[0] for answer in answers}) == 10
        ((record,),) = (read(segment).records for segment in made.spool.due())
    batch = PredictionBatch.FromString(record)
    assert list(batch.trace_ids) == [f"r{number}" for number in range(10)]
    assert batch.latency_seconds == pytest.approx(np.mean(batch.latencies_seconds))


async def test_what_failed_for_all_is_not_tried_again() -> None:
    async with door(deployment(), Lookup(Unavailable("away")), together=True) as made:
        answers = await asyncio.gather(*(made.ask(request(number, 1)) for number in range(10)))
        assert len(made.lookup.rows) == 1
    assert {answer.served_by for answer in answers} == {"fallback:rule"}
    assert {answer.degraded_reason for answer in answers} == {"features: UNAVAILABLE: away"}


@pytest.mark.parametrize("call", [RequestContext(metadata={VERSION_HEADER: "2"}), RequestContext(sampled=True)])
async def test_what_is_pinned_or_traced_goes_alone(call: RequestContext) -> None:
    async with door(deployment(traffic=(Share(OLD, 100), Share(NEW, 0))), Lookup(), together=True) as made:
        await asyncio.gather(*(made.ask(request(number, number), call) for number in range(3)))
        assert made.lookup.rows == [1, 1, 1]


async def test_an_answer_for_which_nobody_waits_any_more_is_not_recorded() -> None:
    lookup = Lookup(gate=asyncio.Event())
    async with door(deployment(traffic=(Share(OLD, 100),)), lookup, together=True) as made:
        asked = [asyncio.create_task(made.ask(request(number, number))) for number in range(3)]
        await lookup.asked.wait()
        asked[1].cancel()
        await asyncio.wait(asked[1:2])
        lookup.gate.set()  # type: ignore[union-attr]  # it was made with one
        await asyncio.gather(*asked, return_exceptions=True)
        assert [record[0] for record in made.records()] == ["r0", "r2"]


async def test_the_time_of_one_does_not_end_the_others() -> None:
    lookup = Lookup(gate=asyncio.Event())
    async with door(deployment(traffic=(Share(OLD, 100),)), lookup, together=True) as made:
        now = asyncio.get_running_loop().time()
        calls = [RequestContext(deadline=now + seconds) for seconds in (60.0, 2.0, 60.0)]
        asked = [asyncio.create_task(made.ask(request(number, number), call)) for number, call in enumerate(calls)]
        hasty = await asked[1]
        lookup.gate.set()  # type: ignore[union-attr]  # it was made with one
        answers = [await asked[0], hasty, await asked[2]]
        assert lookup.rows == [3]
    assert [answer.served_by for answer in answers] == ["traffic", "fallback:rule", "traffic"]


async def test_who_goes_on_alone_stays_with_the_version_that_was_chosen() -> None:
    async with door(deployment(sticky_entity=""), Lookup(), together=True) as made:
        asked = [request(number, 1, REFUSED - 1.0) for number in range(20)]
        answers = await asyncio.gather(*map(made.ask, asked))
        together, alone = dict(made.models.calls[:2]), Counter(ref for ref, _ in made.models.calls[2:])
    assert all(answer.startswith("INVALID_ARGUMENT") for answer in answers)
    assert together == dict(alone)
    assert sorted(together) == [OLD, NEW]


async def test_tenants_are_never_mixed() -> None:
    async with door(deployment(traffic=(Share(OLD, 100),)), Lookup(), together=True) as made:
        calls = [RequestContext(tenant=tenant) for tenant in "stst"]
        await asyncio.gather(*(made.ask(request(number, number), call) for number, call in enumerate(calls)))
        assert made.lookup.rows == [2, 2]
