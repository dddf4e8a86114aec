"""Plain requests that are about at the same time are answered as the rows of one request.

A unit of them takes the first step of its deployment's chain: one lookup, one inference, one record, whatever is made
for all rows in whole arrays. Laws (tested): each caller gets what it would have got alone, and its answer is recorded
as it would have been. What is not as plain as it looked is left to be asked alone: where one row lacks a value or is
refused, and whatever is traced, pinned or shadowed. What fails for all of them alike has been tried: each goes on from
there with its own fallbacks.
"""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from opentelemetry.trace import Tracer

from treadle.core.errors import InvalidInput, TreadleError
from treadle.core.model_ref import ModelRef
from treadle.gateway.pipeline.assembly import CannotAnswer
from treadle.gateway.pipeline.chain import SHARE_WITH_NET, Chain, Outcome, Tried, seconds_for
from treadle.gateway.pipeline.coalesced import Caller, caller
from treadle.gateway.pipeline.coalescer import EVERYONES, Coalescer
from treadle.gateway.pipeline.feature_batch import STALE
from treadle.gateway.pipeline.lane import CoalesceLimits
from treadle.gateway.pipeline.plain import Form, joined, plain
from treadle.gateway.pipeline.request import Ask
from treadle.gateway.pipeline.routing import route, sticky_key
from treadle.gateway.pipeline.rows import AnsweredRows, messages
from treadle.gateway.policy.deployments import Deployment
from treadle.rpc import tracing
from treadle.rpc.context import VERSION_HEADER, RequestContext
from treadle.v1.prediction_pb2 import PredictRequest, PredictResponse

Result = PredictResponse | Tried | None
"""An answer; what has been tried, for the request to go on alone from there; None: nothing has."""
_PATIENCE_SECONDS = 0.005
"""A unit that takes longer waits for others, and the next goes out beside it: one's features are looked up while
another's inference runs. Of quick ones, one at a time is cheaper, for it is larger."""


@dataclass(eq=False, slots=True)
class _Member:
    """One request of a unit."""

    cells: Sequence[object]
    request_id: str
    sticky_key: str
    trace_id: str
    since: float
    gone: bool = False
    """Whether its caller waits no longer: then what it would have got is recorded nowhere."""


class _Key(NamedTuple):
    """What requests of a unit have in common."""

    form: Form
    caller: Caller


class Together:
    """Answers what it can. `remember` is called with the rows of a unit before their callers get them."""

    def __init__(
        self, chain: Chain, remember: Callable[[AnsweredRows], None], limits: CoalesceLimits, tracer: Tracer
    ) -> None:
        self._chain = chain
        self._remember = remember
        self._coalescer: Coalescer[_Key, _Member, Result] = Coalescer(
            self._unit, replace(limits, patience_seconds=_PATIENCE_SECONDS), tracer, chain.clock
        )

    async def predict(self, request: PredictRequest, call: RequestContext) -> Result:
        """See `Result`. Overloaded if there is no room for it."""
        found = None if tracing.is_recording() or VERSION_HEADER in call.metadata else plain(request)
        deployment = found and self._chain.snapshot().deployments.get(found.form.deployment)
        if not found or not deployment or deployment.shadows:
            return None
        chain = self._chain
        since, result = chain.clock(), None
        limit = chain.admission.enter(deployment.name)
        member = _Member(found.cells, request.request_id, request.sticky_key, call.trace_id, since)
        try:
            seconds = seconds_for(deployment) * (SHARE_WITH_NET if deployment.fallbacks else 1.0)
            result = await self._coalescer.submit(_Key(found.form, caller()), member, 1, seconds)
            return result
        except TreadleError as error:  # its own time is over
            return Tried(since, None, error)
        finally:
            member.gone = result is None
            plainly = isinstance(result, PredictResponse) and not result.degraded_reason
            chain.admission.leave(limit, chain.clock() - since if plainly else None)

    async def _unit(self, key: _Key, members: Sequence[_Member], timeout: float) -> list[Result]:
        deployment = self._chain.snapshot().deployments.get(key.form.deployment)
        try:
            ask = joined(key.form, [member.cells for member in members])
            if deployment is None:
                return [None] * len(members)
            self._chain.admission.check(ask, deployment)
        except InvalidInput:
            return [None] * len(members)
        versions = self._routed(deployment, ask, members)
        if len(versions) == 1:
            return await self._by(next(iter(versions)), deployment, ask, members, timeout)
        results: list[Result] = [None] * len(members)

        async def part(ref: ModelRef, rows: list[int]) -> None:
            found = await self._by(ref, deployment, ask.take(rows), [members[row] for row in rows], timeout)
            for row, result in zip(rows, found, strict=True):
                results[row] = result

        await asyncio.gather(*[part(*each) for each in versions.items()])
        return results

    def _routed(self, deployment: Deployment, ask: Ask, members: Sequence[_Member]) -> dict[ModelRef, list[int]]:
        """Which rows go to which version."""
        if len(deployment.traffic) == 1:
            return {deployment.traffic[0].ref: [*range(ask.rows)]}
        parts: dict[ModelRef, list[int]] = defaultdict(list)
        column = ask.entities.get(deployment.sticky_entity)
        for row, member in enumerate(members):
            sticky = {} if column is None else {column.name: column.take(slice(row, row + 1))}
            key = sticky_key(member.sticky_key, member.request_id, sticky, deployment.sticky_entity)
            parts[route(deployment, pin=None, key=key, random=self._chain.random).ref].append(row)
        return parts

    async def _by(
        self, ref: ModelRef, deployment: Deployment, ask: Ask, members: Sequence[_Member], timeout: float
    ) -> list[Result]:
        """What one version makes of its rows."""
        try:
            outcome = await self._chain.first_step(ask, deployment, ref, timeout)
        except TreadleError as error:
            everyones = isinstance(error, EVERYONES) and not isinstance(error, CannotAnswer)  # that is one row's lack
            return [Tried(member.since, ref, error if everyones else None) for member in members]
        results: list[Result] = [None] * len(members)
        for stale, rows in _by_stale(outcome, [row for row, member in enumerate(members) if not member.gone]).items():
            some = (ask, outcome) if len(rows) == ask.rows else (ask.take(rows), outcome.take(rows))
            found = self._answered(ref, deployment, some[0], some[1].with_stale(stale), [members[row] for row in rows])
            for row, message in zip(rows, found, strict=True):
                results[row] = message
        return results

    def _answered(
        self, ref: ModelRef, deployment: Deployment, ask: Ask, outcome: Outcome, members: Sequence[_Member]
    ) -> Iterator[PredictResponse]:
        """Records rows that were answered alike, and makes the answers."""
        chain, now = self._chain, self._chain.clock()
        traces, seconds = [each.trace_id for each in members], [now - each.since for each in members]
        answered = AnsweredRows(deployment, ref, ask, outcome, chain.ids.take(ask.rows), traces, seconds)
        self._remember(answered)
        return messages(answered, [each.request_id for each in members])


def _by_stale(outcome: Outcome, rows: list[int]) -> dict[tuple[str, ...], list[int]]:
    """Some rows by the features that are stale in them."""
    if not rows or not outcome.stale:
        return {(): rows} if rows else {}
    found: dict[tuple[str, ...], list[int]] = defaultdict(list)
    statuses = {name: outcome.features[name].statuses for name in outcome.stale}
    for row in rows:
        found[tuple(name for name, each in statuses.items() if each[row] == STALE)].append(row)
    return dict(found)
