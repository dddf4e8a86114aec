"""The gate: judges the scored slices of a version by thresholds, with a verdict and its reasons."""

import enum
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from treadle.core.errors import InvalidInput, Violation
from treadle.core.hints import unknown
from treadle.evaluation.offline.bootstrap import Estimate
from treadle.evaluation.offline.slices import ScoredSlice, check_pattern, matching_slices


class Verdict(enum.Enum):
    """The verdict of a gate or a threshold; the values are the numbers of the contract's enum."""

    NONE = 0
    """The policy has no threshold."""
    PASS = 1
    FAIL = 2
    NOT_ENOUGH_DATA = 3


@dataclass(frozen=True, slots=True)
class Threshold:
    """A rule that a version must meet: a metric, or its paired difference to the baseline, is within bounds."""

    metric: str
    at_least: float | None = None
    at_most: float | None = None
    relative_to_baseline: bool = False
    slice: str = ""
    """"" all rows; "origin=JFK" one slice; "origin=*" each slice of the column."""
    confident: bool = False
    """Whether to judge the worse bound of the 95 % interval instead of the point estimate."""
    minimum_rows: int = 0
    """0 means the minimum of the policy."""


@dataclass(frozen=True, slots=True)
class GatePolicy:
    """Thresholds that must all hold."""

    name: str = ""
    thresholds: tuple[Threshold, ...] = field(default_factory=tuple)
    minimum_rows: int = 0


@dataclass(frozen=True, slots=True)
class Judgement:
    """The verdict of one threshold on one slice, and why."""

    threshold: Threshold
    slice: str
    """The judged slice: "" all rows; "origin=JFK" for a threshold on "origin=*"."""
    verdict: Verdict
    reason: str


def check_policy(policy: GatePolicy, metrics: Collection[str], *, has_baseline: bool) -> None:
    """Checks a policy before the evaluation. InvalidInput, with a violation for each error in it."""
    violations = [] if policy.minimum_rows >= 0 else [Violation("gate.minimum_rows", "must not be negative")]
    for index, threshold in enumerate(policy.thresholds):
        where = f"gate.thresholds[{index}]"
        violations += [Violation(where, what) for what in _threshold_errors(threshold, metrics, has_baseline)]
    if violations:
        raise InvalidInput("; ".join(f"{v.field}: {v.description}" for v in violations), violations)


def check_slices(policy: GatePolicy, names: list[str]) -> None:
    """Checks, before any prediction, that the dataset has the slice of each threshold. InvalidInput otherwise."""
    for threshold in policy.thresholds:
        check_pattern(threshold.slice, names)


def judge(policy: GatePolicy, slices: Sequence[ScoredSlice]) -> tuple[Verdict, list[Judgement]]:
    """The verdict over all thresholds, and the judgement of each threshold on each of its slices."""
    judgements = [
        _judge(policy, threshold, part)
        for threshold in policy.thresholds
        for part in matching_slices(threshold.slice, slices)
    ]
    return overall([judgement.verdict for judgement in judgements]), judgements


def overall(verdicts: Collection[Verdict]) -> Verdict:
    """The worst of the verdicts: FAIL, then NOT_ENOUGH_DATA, then PASS; NONE if there are none."""
    for verdict in (Verdict.FAIL, Verdict.NOT_ENOUGH_DATA, Verdict.PASS):
        if verdict in verdicts:
            return verdict
    return Verdict.NONE


def _threshold_errors(threshold: Threshold, metrics: Collection[str], has_baseline: bool) -> list[str]:
    low, high = threshold.at_least, threshold.at_most
    found = [] if threshold.metric in metrics else [unknown("metric", threshold.metric, metrics)]
    if low is None and high is None:
        found.append("set at_least or at_most")
    if any(bound is not None and not math.isfinite(bound) for bound in (low, high)):
        found.append("at_least and at_most must be finite")
    if low is not None and high is not None and low > high:
        found.append("at_least must not be above at_most")
    if threshold.relative_to_baseline and not has_baseline:
        found.append("relative_to_baseline needs a baseline: name one in the request")
    if threshold.minimum_rows < 0:
        found.append("minimum_rows must not be negative")
    if threshold.slice and "=" not in threshold.slice:
        found.append(f'slice "{threshold.slice}" must be "column=value" or "column=*"')
    return found


def _judge(policy: GatePolicy, threshold: Threshold, part: ScoredSlice) -> Judgement:
    comparison = part.comparison
    wanted = threshold.minimum_rows or policy.minimum_rows
    where = f"{part.name}: " if part.name else ""
    if comparison.rows < max(wanted, 1):
        reason = f"{where}{comparison.rows:,} labelled rows are under the minimum of {max(wanted, 1):,}"
        return Judgement(threshold, part.name, Verdict.NOT_ENOUGH_DATA, reason)
    estimates = comparison.difference if threshold.relative_to_baseline else comparison.candidate
    estimate = next(each for each in estimates if each.metric == threshold.metric)
    verdict, finding = _within(threshold, estimate)
    what = f"{threshold.metric} difference to the baseline" if threshold.relative_to_baseline else threshold.metric
    reason = f"{where}{what} {_estimate_words(estimate)} {finding} ({comparison.rows:,} rows)"
    return Judgement(threshold, part.name, verdict, reason)


def _within(threshold: Threshold, estimate: Estimate) -> tuple[Verdict, str]:
    worst_low, worst_high = (estimate.low, estimate.high) if threshold.confident else (estimate.value, estimate.value)
    if math.isnan(estimate.value):
        return Verdict.NOT_ENOUGH_DATA, "is undefined for these rows"
    if math.isnan(worst_low) or math.isnan(worst_high):
        return Verdict.NOT_ENOUGH_DATA, "has no 95 % interval: too few rows to be confident"
    sure = "not surely " if threshold.confident else ""
    if threshold.at_least is not None and worst_low < threshold.at_least:
        certain = threshold.confident and estimate.value >= threshold.at_least
        return (
            Verdict.FAIL,
            f"is {sure}at least {threshold.at_least:g}" if certain else f"is under {threshold.at_least:g}",
        )
    if threshold.at_most is not None and worst_high > threshold.at_most:
        certain = threshold.confident and estimate.value <= threshold.at_most
        return Verdict.FAIL, f"is {sure}at most {threshold.at_most:g}" if certain else f"is over {threshold.at_most:g}"
    bounds = [f"at least {threshold.at_least:g}"] if threshold.at_least is not None else []
    bounds += [f"at most {threshold.at_most:g}"] if threshold.at_most is not None else []
    return Verdict.PASS, f"is {'surely ' if threshold.confident else ''}{' and '.join(bounds)}"


def _estimate_words(estimate: Estimate) -> str:
    """The value to four significant digits (fewer could equal the bound of a failed threshold), with its interval."""
    if math.isnan(estimate.low):
        return f"{estimate.value:.4g}"
    return f"{estimate.value:.4g} [{estimate.low:.4g}, {estimate.high:.4g}]"
