"""What the gateway takes in: how many requests at once, how many rows, in which form."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from treadle.core.errors import InvalidInput, Overloaded, Violation
from treadle.core.limiter import AdaptiveLimit
from treadle.gateway.pipeline.request import Ask
from treadle.gateway.policy.deployments import Deployment

_LEAST_IN_FLIGHT = 16


@dataclass(frozen=True, slots=True)
class Limits:
    """The most that is admitted."""

    request_rows: int
    in_flight: int
    """Requests in work at once, of all deployments."""
    target_seconds: float = 0.5
    """Of one deployment, no more requests at once than are answered in this time on average."""


class Admission:
    """Counts requests in flight and refuses what is too much or malformed.

    Each deployment has a limit of its own, which follows the time that its answers take: a slow one takes no room from
    a quick one.
    """

    def __init__(self, limits: Limits, clock: Callable[[], float] = time.monotonic) -> None:
        self._limits = limits
        self._clock = clock
        self._by_deployment: dict[str, AdaptiveLimit] = {}
        self.in_flight = 0

    def enter(self, deployment: str) -> AdaptiveLimit:
        """Takes one of the places for requests in flight, of the limit returned; Overloaded when all are taken.

        `deployment` is the name of one that exists.
        """
        if self.in_flight >= self._limits.in_flight:
            raise Overloaded(f"the gateway has {self.in_flight} requests in flight, its limit; retry later")
        limit = self._by_deployment.get(deployment) or self._limit(deployment)
        limit.acquire()
        self.in_flight += 1
        return limit

    def leave(self, limit: AdaptiveLimit, seconds: float | None) -> None:
        """Gives the place back, after so many seconds.

        None: the time tells nothing of the load. So it is with errors, and with fallbacks that waited for a service
        that is out of reach: then it would be wrong to let in less.
        """
        self.in_flight -= 1
        if seconds is None:
            limit.release_unmeasured(1)
        else:
            limit.release(1, seconds)

    def _limit(self, deployment: str) -> AdaptiveLimit:
        most = self._limits.in_flight
        limit = AdaptiveLimit(
            f"deployment {deployment}",
            target_seconds=self._limits.target_seconds,
            start=most,
            max_limit=most,
            min_limit=min(_LEAST_IN_FLIGHT, most),
            clock=self._clock,
        )
        self._by_deployment[deployment] = limit
        return limit

    def check(self, ask: Ask, deployment: Deployment) -> None:
        """InvalidInput, naming everything that is wrong with the request's form."""
        if not _is_plain(ask, deployment) or ask.rows > self._limits.request_rows:
            self._judge(ask, deployment)

    def _judge(self, ask: Ask, deployment: Deployment) -> None:
        violations = [*_form(ask), *_entities(ask), *_unknown(ask, deployment)]
        if not violations and ask.rows == 0:
            violations.append(Violation("tensors" if ask.tensors else "entities", "hold no rows; send at least one"))
        if ask.rows > self._limits.request_rows:
            most = self._limits.request_rows
            violations.append(Violation("rows", f"{ask.rows} rows are more than the {most} of one request; split it"))
        if violations:
            text = "; ".join(f"{violation.field} {violation.description}" for violation in violations[:5])
            raise InvalidInput(f"the request is malformed: {text}", violations)


def _is_plain(ask: Ask, deployment: Deployment) -> bool:
    """Whether nothing can be wrong with a request: nearly all are like that, and one look tells."""
    known = deployment.known_columns
    if ask.tensors or ask.outputs or known is None or not ask.rows:
        return False
    for name, column in ask.entities.items():
        if name not in known or name in ask.context or column.nulls is not None or column.values.shape != (ask.rows,):
            return False
    return all(name in known and column.rows == ask.rows for name, column in ask.context.items())


def _form(ask: Ask) -> Iterator[Violation]:
    if ask.tensors and (ask.entities or ask.context):
        yield Violation("tensors", "exclude entities and context; send the one or the other")
    if not (ask.tensors or ask.entities or ask.context):
        yield Violation("entities", "are missing; send entities (with context), or tensors")
    for name in sorted(ask.entities.keys() & ask.context.keys()):
        yield Violation(f"context[{name}]", "is an entity as well; send it once")
    for where, columns in (("entities", ask.entities), ("context", ask.context), ("tensors", ask.tensors)):
        for name, column in columns.items():
            if column.rows != ask.rows:
                yield Violation(f"{where}[{name}]", f"has {column.rows} rows where the first column has {ask.rows}")
    if len(set(ask.outputs)) != len(ask.outputs):
        yield Violation("outputs", "name one output twice")


def _entities(ask: Ask) -> Iterator[Violation]:
    for name, column in ask.entities.items():
        if column.row_shape:
            yield Violation(f"entities[{name}]", "must hold one key a row")
        if column.nulls is not None and column.nulls.any():
            row = int(column.nulls.argmax())
            yield Violation(f"entities[{name}]", f"is null in row {row}; every row needs its keys")


def _unknown(ask: Ask, deployment: Deployment) -> Iterator[Violation]:
    """A misspelt column would otherwise be ignored, and its feature silently missing."""
    known = deployment.known_columns if not ask.tensors else None
    if known is None:
        return
    for where, columns in (("entities", ask.entities), ("context", ask.context)):
        for name in columns:
            if name not in known:
                there = ", ".join(sorted(known))
                yield Violation(f"{where}[{name}]", f"is used by nothing in {deployment.name!r}; it takes {there}")
