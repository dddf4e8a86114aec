"""The fault of one request stays its own: a batch that fails is halved until the request at fault is alone."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import ceil, log2
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.trace import INVALID_SPAN_CONTEXT

from treadle.core.column import Column
from treadle.core.errors import Internal, InvalidInput, TreadleError, Unavailable
from treadle.core.model_ref import ModelRef
from treadle.gateway.pipeline.batch.request_batch import PendingRequest, RequestBatch
from treadle.gateway.pipeline.stages.fallback import isolate_faults
from treadle.gateway.pipeline.stages.upstream_errors import BATCH_WIDE_ERRORS
from treadle.gateway.policy.deployments import ServedDeployment, ServedShare
from treadle.rpc.context import RequestContext

from .core import decoded_request

DEPLOYMENT = ServedDeployment("d", (ServedShare(ModelRef("m", 1), 100),))
GOOD, BAD = 1.0, -1.0


def batch_of(requests: Sequence[Sequence[float]]) -> RequestBatch:
    """A request for each sequence, with a row for each value."""
    found = []
    for values in requests:
        request = decoded_request("d", context=[Column.of("x", np.array(values))])
        found.append(PendingRequest(request, RequestContext(), 0.0, 1.0, INVALID_SPAN_CONTEXT, request.rows))
    return RequestBatch.join(DEPLOYMENT, found)


@dataclass
class Upstream:
    """The stages below: answers requests with their values, and refuses a batch for its first row that is BAD."""

    fault: type[TreadleError] = InvalidInput
    calls: list[int] = field(default_factory=list)

    async def __call__(self, batch: RequestBatch) -> None:
        self.calls.append(len(batch.requests))
        await asyncio.sleep(0)
        values = batch.context["x"].values
        bad = values == BAD
        if bad.any():
            raise self.fault(f"row {int(bad.argmax())} is refused")
        for index, pending in enumerate(batch.requests):
            answer: Any = values[batch.starts[index] : batch.starts[index + 1]].tolist()
            assert not pending.is_done, "answered twice"
            pending.succeed(answer)


def isolated(batch: RequestBatch, upstream: Upstream) -> list[Any]:
    """Of each request, its answer or the message of its error."""

    async def scenario() -> None:
        try:
            await isolate_faults(batch, upstream)
        except TreadleError as error:
            batch.fail_all(error)

    asyncio.run(scenario())
    failed = {pending: error.message for pending, error in batch.failures.items()}
    return [failed.get(each, each.outcome) for each in batch.requests]


@settings(deadline=None)
@given(
    st.lists(st.lists(st.sampled_from([GOOD, GOOD, GOOD, BAD]), min_size=1, max_size=4), min_size=1, max_size=12),
    st.sampled_from([InvalidInput, Internal]),
)
def test_each_request_gets_the_answer_or_the_error_that_it_gets_alone(
    requests: list[list[float]], fault: type[TreadleError]
) -> None:
    found = isolated(batch_of(requests), Upstream(fault))
    assert found == [isolated(batch_of([each]), Upstream(fault))[0] for each in requests]
    for values, outcome in zip(requests, found, strict=True):
        assert outcome == (f"row {values.index(BAD)} is refused" if BAD in values else values)


@pytest.mark.parametrize("count", [2, 7, 64, 100])
def test_one_bad_request_of_many_costs_few_calls(count: int) -> None:
    for at in {0, count // 2, count - 1}:
        upstream = Upstream()
        batch = batch_of([[BAD if number == at else GOOD] for number in range(count)])
        isolated(batch, upstream)
        assert list(batch.failures) == [batch.requests[at]]
        assert len(upstream.calls) <= 1 + 2 * ceil(log2(count))


def test_a_batch_without_a_fault_is_one_call() -> None:
    upstream = Upstream()
    assert isolated(batch_of([[GOOD]] * 64), upstream) == [[GOOD]] * 64
    assert upstream.calls == [64]


@pytest.mark.parametrize("fault", BATCH_WIDE_ERRORS)
def test_an_error_of_the_upstream_as_a_whole_is_not_asked_for_again(fault: type[TreadleError]) -> None:
    upstream = Upstream(fault)
    found = isolated(batch_of([[GOOD], [BAD], [GOOD]]), upstream)
    assert upstream.calls == [3]
    assert found == ["row 1 is refused"] * 3


def test_an_upstream_that_goes_away_meanwhile_fails_the_rest_only() -> None:
    class GoesAway(Upstream):
        async def __call__(self, batch: RequestBatch) -> None:
            if len(self.calls) == 2:
                self.calls.append(len(batch.requests))
                raise Unavailable("away")
            await super().__call__(batch)

    upstream = GoesAway()
    assert isolated(batch_of([[GOOD], [GOOD], [BAD], [GOOD]]), upstream) == [[GOOD], [GOOD], "away", "away"]
    assert upstream.calls == [4, 2, 2]


def test_a_request_that_a_lower_stage_has_refused_keeps_its_reason() -> None:
    class Refuses(Upstream):
        async def __call__(self, batch: RequestBatch) -> None:
            """Refuses the first request by itself, then all of them."""
            first = batch.requests[0]
            if first.request.values[0][0] == 0.0:
                batch.fail(0, InvalidInput("is refused by itself"))
            raise Unavailable("away")

    assert isolated(batch_of([[0.0], [GOOD]]), Refuses()) == ["is refused by itself", "away"]


def test_an_unexpected_exception_ends_the_batch() -> None:
    async def broken(batch: RequestBatch) -> None:
        raise RuntimeError("a fault of ours")

    with pytest.raises(RuntimeError, match="a fault of ours"):
        asyncio.run(isolate_faults(batch_of([[GOOD], [GOOD]]), broken))
