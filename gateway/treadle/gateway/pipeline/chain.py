"""One request: route, features, inference, fallbacks, record. The order of `Chain.predict` is the order of the work."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import NamedTuple

import numpy as np

from treadle.core.column import Column
from treadle.core.errors import (
    Cancelled,
    DeadlineExceeded,
    InvalidInput,
    OutOfRange,
    PermissionDenied,
    TreadleError,
    Unauthenticated,
    Unavailable,
    Violation,
)
from treadle.core.model_ref import ModelRef
from treadle.gateway.pipeline import assembly
from treadle.gateway.pipeline.admission import Admission
from treadle.gateway.pipeline.feature_batch import Features
from treadle.gateway.pipeline.ids import PredictionIds
from treadle.gateway.pipeline.lookups import Lookups
from treadle.gateway.pipeline.request import Answer, Ask, Tensors
from treadle.gateway.pipeline.routing import Route, route, sticky_key
from treadle.gateway.pipeline.shadows import Shadows
from treadle.gateway.policy.deployments import Deployment, ServedVersion, Snapshot, Step
from treadle.gateway.upstream.ports import FeatureLookup, Inference
from treadle.rpc.context import remaining

# No other version would judge these differently: they are the caller's to mend.
CALLERS_FAULT = (InvalidInput, OutOfRange, Unauthenticated, PermissionDenied, Cancelled)
# While another step stands behind it, a step may take this share of the time left, so that the net can still catch.
SHARE_WITH_NET = 0.75
DEFAULT_TIMEOUT_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Remembered:
    """One answered request, for the ledger."""

    ask: Ask
    deployment: Deployment
    answer: Answer
    latency_seconds: float
    shadow: bool = False


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one version made of a request."""

    outputs: tuple[Column, ...]
    features: Features = field(default_factory=Features.none)
    degraded: str = ""
    stale: tuple[str, ...] = ()
    """Features that were stale in some row."""

    def with_stale(self, stale: tuple[str, ...]) -> "Outcome":
        """The same where these features were stale."""
        return Outcome(self.outputs, self.features, f"features: stale: {', '.join(stale)}" if stale else "", stale)

    def take(self, rows: Sequence[int]) -> "Outcome":
        """The same for some of its rows."""
        at = np.array(rows, dtype=np.int64)
        outputs = tuple(column.take(at) for column in self.outputs)
        return replace(self, outputs=outputs, features=self.features.take(rows))


class Tried(NamedTuple):
    """What became of a request so far."""

    since: float
    """When it arrived."""
    ref: ModelRef | None = None
    """The version that was chosen for it, if one was."""
    error: TreadleError | None = None
    """What the first step of its chain came to, if it was asked."""


class Chain:
    """Answers requests. `remember` is called with each answer before the caller gets it, and must not block."""

    def __init__(
        self,
        snapshot: Callable[[], Snapshot],
        admission: Admission,
        features: FeatureLookup,
        inference: Inference,
        shadows: Shadows,
        ids: PredictionIds,
        remember: Callable[[Remembered], None],
        random: Callable[[], float],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.snapshot = snapshot
        self.admission = admission
        self.ids = ids
        self.random = random
        self.clock = clock
        self._features = features
        self._inference = inference
        self._shadows = shadows
        self._remember = remember

    async def predict(self, ask: Ask, tried: Tried | None = None) -> Answer:
        """The answer, or a TreadleError: see `PredictionService.Predict` for which. What was `tried` is not again."""
        started = tried.since if tried else self.clock()
        deployment = self.snapshot().deployment(ask.deployment)
        limit = self.admission.enter(deployment.name)
        took: float | None = None
        try:
            self.admission.check(ask, deployment)
            chosen = self._chosen(ask, deployment, tried)
            work = self._work(ask, deployment, self._budget(deployment, started))
            try:
                outcome, ref, served_by = await work.answer(chosen.ref, chosen.served_by, tried and tried.error)
                answer = self._answer(ask, outcome, ref, served_by)
                seconds = self.clock() - started
                self._remember(Remembered(ask, deployment, answer, seconds))
            finally:
                self._cast_shadows(work, chosen.ref)
            took = None if answer.degraded_reason else seconds
            return answer
        finally:
            self.admission.leave(limit, took)

    def _chosen(self, ask: Ask, deployment: Deployment, tried: Tried | None) -> Route:
        if tried is not None and tried.ref and tried.ref in deployment.versions:
            return Route(tried.ref, "traffic")
        key = sticky_key(ask.sticky_key, ask.request_id, ask.entities, deployment.sticky_entity)
        return route(deployment, pin=ask.pin, key=key, random=self.random)

    async def first_step(self, ask: Ask, deployment: Deployment, ref: ModelRef, seconds: float) -> Outcome:
        """What one version makes of a request; TreadleError."""
        budget = Budget(self.clock() + seconds, self.clock)
        return await self._work(ask, deployment, budget).by(ref, budget)

    def _work(self, ask: Ask, deployment: Deployment, budget: "Budget") -> "Work":
        return Work(ask, deployment, Lookups(ask, deployment, self._features), self._inference, budget)

    def _budget(self, deployment: Deployment, started: float) -> "Budget":
        left = remaining()
        return Budget(started + _seconds(deployment) if left is None else self.clock() + left, self.clock)

    def _answer(self, ask: Ask, outcome: Outcome, ref: ModelRef, served_by: str) -> Answer:
        ids = tuple(self.ids.take(ask.rows))
        return Answer(outcome.outputs, ref, ids, outcome.features, served_by, outcome.degraded)

    def _cast_shadows(self, work: "Work", chosen: ModelRef) -> None:
        for ref in work.deployment.shadows:
            if ref != chosen:
                self._shadows.cast(str(ref), partial(self._shadow, work, ref))

    async def _shadow(self, work: "Work", ref: ModelRef) -> None:
        """The same request to a version whose answer only the ledger sees, with time of its own."""
        started = self.clock()
        shadow = replace(work, budget=self._budget(work.deployment, started))
        outcome = await shadow.by(ref, shadow.budget)
        answer = self._answer(work.ask, outcome, ref, "shadow")
        self._remember(Remembered(work.ask, work.deployment, answer, self.clock() - started, shadow=True))


class Budget:
    """A deadline that steps share."""

    def __init__(self, deadline: float, clock: Callable[[], float]) -> None:
        self._deadline = deadline
        self._clock = clock

    def left(self) -> float:
        """Seconds, 0 when it is over."""
        return max(0.0, self._deadline - self._clock())

    def within(self, seconds: float) -> "Budget":
        """A budget of at most `seconds` inside this one."""
        return Budget(min(self._deadline, self._clock() + seconds), self._clock)


@dataclass(frozen=True, slots=True)
class Work:
    """What the steps of one request share."""

    ask: Ask
    deployment: Deployment
    lookups: Lookups
    inference: Inference
    budget: Budget

    async def answer(
        self, chosen: ModelRef, served_by: str, tried: TreadleError | None = None
    ) -> tuple[Outcome, ModelRef, str]:
        """The first outcome of the chosen version and the fallbacks behind it, who gave it, and as what.

        `tried` is what the chosen version came to, if it has been asked already.
        Raises the caller's fault at once; DeadlineExceeded when the time is over; Unavailable when no step could
        answer.
        """
        attempts = list(self._attempts(chosen, served_by))
        failures: list[str] = []
        last: TreadleError | None = None
        for position, step in enumerate(attempts):
            try:
                if tried is not None and position == 0:
                    raise tried.clone() from tried  # others of its unit have the same
                outcome = await self._attempt(step, has_net=position + 1 < len(attempts))
            except TreadleError as error:
                if isinstance(error, CALLERS_FAULT) and position == 0:
                    raise
                failures.append(error.message if position == 0 else f"{step.name}: {error.message}")
                last = error
                if self.budget.left() <= 0:
                    raise DeadlineExceeded(f"the deadline passed: {'; '.join(failures)}") from error
            else:
                if position == 0:
                    return outcome, chosen, served_by
                reason = "; ".join(filter(None, [*failures, outcome.degraded]))
                answered = Outcome(outcome.outputs, outcome.features, reason)
                return answered, step.ref or ModelRef(chosen.model, 0), f"fallback:{step.name}"
        raise _exhausted(failures, last)

    def _attempts(self, chosen: ModelRef, served_by: str) -> Iterator[Step]:
        yield Step(served_by, chosen)
        for step in self.deployment.fallbacks:
            if step.ref != chosen:
                yield step

    async def _attempt(self, step: Step, *, has_net: bool) -> Outcome:
        left = self.budget.left()
        most = left * SHARE_WITH_NET if has_net else left
        budget = self.budget.within(min(most, step.timeout_seconds) if step.timeout_seconds else most)
        if step.ref is None:
            return Outcome(_constant(step.constant, self.ask))
        return await self.by(step.ref, budget)

    async def by(self, ref: ModelRef, budget: Budget) -> Outcome:
        """The outcome of one version. Messages begin with the hop that failed."""
        version = self.deployment.version(ref)
        if self.ask.outputs:
            _check_outputs(self.ask.outputs, [spec.name for spec in version.signature.outputs])
        if self.ask.tensors:
            features = Features.none()
            assembled = assembly.from_tensors(version, self.ask)
        else:
            features = await self._features(version, budget)
            assembled = assembly.from_columns(version, self.ask, features, strict=self.deployment.strict)
        with _named(str(ref)):
            found = await self.inference.infer(ref, assembled.inputs, self.ask.outputs, budget.left())
        return Outcome(_outputs(version, self.ask, found), features).with_stale(assembled.stale)

    async def _features(self, version: ServedVersion, budget: Budget) -> Features:
        if not version.feature_service or assembly.covered(version, self.ask):
            return Features.none()
        most = self.deployment.feature_timeout_seconds
        timeout = min(most, budget.left()) if most else min(self.budget.left() / 2, budget.left())
        with _named("features"):
            return await self.lookups.get(version.feature_service, timeout)


class _named:  # noqa: N801  # reads as the statement it is
    """Puts the hop in front of the message of an error that is not the caller's."""

    def __init__(self, hop: str) -> None:
        self._hop = hop

    def __enter__(self) -> None: ...

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if isinstance(error, TreadleError) and not isinstance(error, CALLERS_FAULT):
            text = f"{self._hop}: {error.code.name}: {error.message}"
            raise error.clone(text) from error


def seconds_for(deployment: Deployment) -> float:
    """What the present caller gives, or without a deadline what the deployment does."""
    left = remaining()
    return _seconds(deployment) if left is None else left


def _seconds(deployment: Deployment) -> float:
    return deployment.timeout_seconds or DEFAULT_TIMEOUT_SECONDS


def _exhausted(failures: list[str], last: TreadleError | None) -> TreadleError:
    """Why nothing answered: the one error as it is when there was no chain to fall back on."""
    if last is not None and len(failures) == 1 and not isinstance(last, DeadlineExceeded):
        return last
    return Unavailable(f"nothing in the fallback chain could answer: {'; '.join(failures)}")


def _check_outputs(wanted: Sequence[str], there: Sequence[str]) -> None:
    unknown = [name for name in wanted if name not in there]
    if unknown:
        what = f"is no output; there are {', '.join(there)}"
        raise InvalidInput(
            f"outputs: {', '.join(map(repr, unknown))} {what}",
            [Violation(f"outputs[{name}]", what) for name in unknown],
        )


def _outputs(version: ServedVersion, ask: Ask, found: Tensors) -> tuple[Column, ...]:
    columns = []
    for spec in version.signature.outputs:
        if ask.outputs and spec.name not in ask.outputs:
            continue
        values = found.get(spec.name)
        if values is None or len(values) != ask.rows:
            raise Unavailable(f"{version.ref}: output {spec.name!r} is missing or has not {ask.rows} rows")
        columns.append(Column(spec.name, spec.dtype, values))
    return tuple(columns)


def _constant(row: tuple[Column, ...], ask: Ask) -> tuple[Column, ...]:
    """The default answer's one row, as often as there are rows."""
    _check_outputs(ask.outputs, [column.name for column in row])
    index = np.zeros(ask.rows, dtype=np.int64)
    return tuple(column.take(index) for column in row if not ask.outputs or column.name in ask.outputs)
