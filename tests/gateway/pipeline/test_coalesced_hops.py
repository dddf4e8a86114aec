"""The two hops asked together: any columns, nulls and tensors come back as if each caller had asked alone."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.trace import NoOpTracer

from treadle.core.column import Column
from treadle.core.dtypes import NUMPY_DTYPES
from treadle.core.errors import InvalidInput, TreadleError
from treadle.core.model_ref import ModelRef
from treadle.gateway.pipeline.coalesced import CoalescedFeatures, CoalescedInference
from treadle.gateway.pipeline.feature_batch import MISSING, PRESENT, Features, FeatureValues
from treadle.gateway.pipeline.lane import CoalesceLimits
from treadle.gateway.pipeline.request import Tensors
from treadle.rpc.context import RequestContext, current, request_scope

DTYPES = ("STRING", "INT64", "FP32", "TIMESTAMP", "BOOL", "BYTES")
REF = ModelRef("m", 1)


@dataclass
class Lookup:
    """Gives back each column as a feature; its age is the number of rows of the whole lookup, its nulls are MISSING."""

    calls: list[tuple[RequestContext, int]] = field(default_factory=list)

    async def look_up(
        self, service: str, entities: Sequence[Column], context: Sequence[Column], now_micros: int, timeout: float
    ) -> Features:
        rows = entities[0].rows
        self.calls.append((current(), rows))
        await asyncio.sleep(0)
        found = {}
        for column in (*entities, *context):
            nulls = np.zeros(rows, bool) if column.nulls is None else column.nulls
            statuses = np.where(nulls, MISSING, PRESENT).astype(np.uint8)
            found[column.name] = FeatureValues(column, statuses, np.full(rows, float(now_micros)))
        return Features.of(found, (*entities, *context), rows)


@dataclass
class Model:
    """Each output is the input of its name, upside down within the row; a row of -1 is refused."""

    calls: list[int] = field(default_factory=list)

    async def infer(self, ref: ModelRef, inputs: Tensors, outputs: Sequence[str], timeout: float) -> Tensors:
        self.calls.append(len(next(iter(inputs.values()))))
        await asyncio.sleep(0)
        for name, array in inputs.items():
            if array.dtype != object and (bad := (array == -1).reshape(len(array), -1).any(axis=1)).any():
                raise InvalidInput.at(name, f"row {int(bad.argmax())} is refused")
        wanted = outputs or list(inputs)
        return {name: inputs[name][..., ::-1] if inputs[name].ndim > 1 else inputs[name] for name in wanted}


@st.composite
def column(draw: st.DrawFn, name: str, dtype: str, rows: int) -> Column:
    numbers = draw(st.lists(st.integers(0, 1), min_size=rows, max_size=rows))
    nulls = draw(st.one_of(st.none(), st.lists(st.booleans(), min_size=rows, max_size=rows)))
    if dtype in {"STRING", "BYTES"}:
        values = np.empty(rows, object)
        values[:] = [str(number) if dtype == "STRING" else bytes([number]) for number in numbers]
    else:
        values = np.array(numbers).astype(NUMPY_DTYPES[dtype])
    return Column(name, dtype, values, None if nulls is None else np.array(nulls))


@st.composite
def lookup(draw: st.DrawFn) -> dict[str, Any]:
    rows = draw(st.integers(1, 4))
    names = draw(st.sampled_from([("a",), ("a", "b")]))
    dtypes = {name: draw(st.sampled_from(DTYPES[:2])) for name in names}
    return {
        "service": draw(st.sampled_from(["f", "g"])),
        "entities": [draw(column(name, dtypes[name], rows)) for name in names],
        "context": draw(st.lists(st.sampled_from(DTYPES).flatmap(lambda each: column("c", each, rows)), max_size=1)),
        "now_micros": draw(st.sampled_from([0, 5])),
    }


def same_column(one: Column, other: Column) -> bool:
    nulls = [np.zeros(each.rows, bool) if each.nulls is None else each.nulls for each in (one, other)]
    return (
        (one.name, one.dtype) == (other.name, other.dtype)
        and one.values.tolist() == other.values.tolist()
        and np.array_equal(*nulls)
    )


@settings(deadline=None)
@given(st.lists(lookup(), min_size=1, max_size=12), st.integers(1, 9), st.integers(1, 2))
def test_features_found_together_are_those_found_alone(asked: list[dict[str, Any]], rows: int, calls: int) -> None:
    async def scenario() -> None:
        alone = [await Lookup().look_up(**each, timeout=5.0) for each in asked]
        hop = CoalescedFeatures(Lookup(), CoalesceLimits(rows, calls), NoOpTracer())
        together = await asyncio.gather(*(hop.look_up(**each, timeout=5.0) for each in asked))
        for own, found in zip(alone, together, strict=True):
            assert list(found) == list(own)
            for name in own:
                assert same_column(found[name].column, own[name].column)
                assert found[name].statuses.tolist() == own[name].statuses.tolist()
                assert found[name].ages_seconds.tolist() == own[name].ages_seconds.tolist()

    asyncio.run(scenario())


@st.composite
def inference(draw: st.DrawFn) -> dict[str, Any]:
    rows = draw(st.integers(1, 4))
    shape = draw(st.sampled_from([(rows,), (rows, 2), (rows, 3)]))
    dtype = draw(st.sampled_from([np.float32, np.int64]))
    values = st.sampled_from([-1, 1, 2, 3, 4, 5, 6, 7, 8, 9])
    cells = draw(st.lists(values, min_size=int(np.prod(shape)), max_size=int(np.prod(shape))))
    texts = np.empty(rows, object)
    texts[:] = draw(st.sampled_from([["t"] * rows, [b"t"] * rows]))
    inputs = {"x": np.array(cells, dtype).reshape(shape), "t": texts}
    return {"ref": draw(st.sampled_from([REF, ModelRef("m", 2)])), "inputs": inputs, "outputs": draw(outputs)}


outputs = st.sampled_from([(), ("x",), ("t", "x")])


@settings(deadline=None)
@given(st.lists(inference(), min_size=1, max_size=12), st.integers(1, 9), st.integers(1, 2))
def test_rows_inferred_together_are_those_inferred_alone(asked: list[dict[str, Any]], rows: int, calls: int) -> None:
    async def outcome(hop: Any, request: dict[str, Any]) -> Any:
        try:
            found = await hop.infer(**request, timeout=5.0)
        except TreadleError as error:
            return type(error), error.message, error.violations
        return {name: (array.dtype, array.tolist()) for name, array in found.items()}

    async def scenario() -> None:
        alone = [await outcome(Model(), each) for each in asked]
        hop = CoalescedInference(Model(), CoalesceLimits(rows, calls), NoOpTracer())
        assert await asyncio.gather(*(outcome(hop, each) for each in asked)) == alone

    asyncio.run(scenario())


async def test_callers_of_different_tenants_or_actors_are_never_asked_together() -> None:
    lookup = Lookup()
    hop = CoalescedFeatures(lookup, CoalesceLimits(), NoOpTracer())

    async def ask(tenant: str, actor: str) -> None:
        with request_scope(RequestContext(tenant=tenant, metadata={"treadle-actor": actor, "user-agent": "any"})):
            await hop.look_up("f", [Column.of("a", ["x"])], [], 0, 5.0)

    callers = [(tenant, actor) for tenant in "st" for actor in "ab"]
    await asyncio.gather(*(ask(*caller) for caller in callers * 5))
    for caller in callers:
        asked = [rows for call, rows in lookup.calls if (call.tenant, call.metadata["treadle-actor"]) == caller]
        assert sum(asked) == 5
        assert len(asked) < 5


async def test_large_rows_go_in_smaller_calls() -> None:
    model = Model()
    hop = CoalescedInference(model, CoalesceLimits(rows=8), NoOpTracer())
    picture = np.zeros((1, 4096), np.float32)  # counts as four rows
    await asyncio.gather(*(hop.infer(REF, {"x": picture}, (), 5.0) for _ in range(5)))
    assert model.calls == [2, 2, 1]


async def test_an_answer_of_another_number_of_rows_is_not_handed_out() -> None:
    class Short(Model):
        async def infer(self, ref: ModelRef, inputs: Tensors, outputs: Sequence[str], timeout: float) -> Tensors:
            found = await super().infer(ref, inputs, outputs, timeout)
            return {name: array[:1] for name, array in found.items()}

    hop = CoalescedInference(Short(), CoalesceLimits(), NoOpTracer())
    rows = [np.array([float(number)]) for number in range(4)]
    found = await asyncio.gather(*(hop.infer(REF, {"x": row}, (), 5.0) for row in rows))
    assert [each["x"].tolist() for each in found] == [[0.0], [1.0], [2.0], [3.0]]


async def test_a_call_for_many_has_the_longest_of_their_times() -> None:
    lookup = Lookup()
    hop = CoalescedFeatures(lookup, CoalesceLimits(), NoOpTracer())

    async def ask(deadline: float, timeout: float) -> None:
        with request_scope(RequestContext(deadline=deadline)):
            await hop.look_up("f", [Column.of("a", ["x"])], [], 0, timeout)

    loop = asyncio.get_running_loop()
    await asyncio.gather(*(ask(loop.time() + seconds, seconds) for seconds in (50.0, 20.0, 70.0, 30.0)))
    ((call, together),) = lookup.calls
    assert together == 4
    assert call.deadline == pytest.approx(loop.time() + 70.0, abs=10.0)
