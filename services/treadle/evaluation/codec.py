"""Between the contract's messages and the core's objects."""

from collections.abc import Iterable

from treadle.core.errors import InvalidInput
from treadle.evaluation.offline.bootstrap import Estimate
from treadle.evaluation.offline.gate import Judgement, Policy, Threshold, Verdict
from treadle.evaluation.offline.metrics import Task
from treadle.evaluation.offline.slices import ScoredSlice
from treadle.v1 import evaluation_pb2 as pb


def task_of(number: int) -> Task:
    """The task; InvalidInput for UNSPECIFIED and numbers unknown."""
    try:
        return Task(number)
    except ValueError:
        what = "must be binary classification, multiclass classification or regression"
        raise InvalidInput.at("task", what) from None


def policy_of(message: pb.GatePolicy) -> Policy:
    """The policy of a request."""
    return Policy(message.name, tuple(map(_threshold_of, message.thresholds)), message.minimum_rows)


def gate_result(verdict: Verdict, judgements: Iterable[Judgement], policy: pb.GatePolicy) -> pb.GateResult:
    """The verdict as it is stored."""
    of = {_threshold_of(each): each for each in policy.thresholds}
    results = []
    for each in judgements:
        result = pb.ThresholdResult(threshold=of[each.threshold], verdict=_verdict(each.verdict), reason=each.reason)
        result.threshold.slice = each.slice
        results.append(result)
    return pb.GateResult(verdict=_verdict(verdict), results=results)


def slice_metrics(part: ScoredSlice) -> pb.SliceMetrics:
    """The metrics of one slice."""
    compared = part.comparison
    return pb.SliceMetrics(
        slice=part.name,
        rows=compared.rows,
        candidate=estimates(compared.candidate),
        baseline=estimates(compared.baseline),
        difference=estimates(compared.difference),
    )


def estimates(found: Iterable[Estimate]) -> list[pb.Estimate]:
    """Numbers with their intervals."""
    return [pb.Estimate(metric=each.metric, value=each.value, low=each.low, high=each.high) for each in found]


def _verdict(verdict: Verdict) -> pb.Verdict.ValueType:
    return pb.Verdict.ValueType(verdict.value)


def _threshold_of(message: pb.Threshold) -> Threshold:
    return Threshold(
        message.metric,
        message.at_least if message.HasField("at_least") else None,
        message.at_most if message.HasField("at_most") else None,
        message.relative_to_baseline,
        message.slice,
        message.confident,
        message.minimum_rows,
    )
