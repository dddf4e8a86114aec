"""Conversion between the messages of the contract and the objects of the evaluation service."""

from collections.abc import Iterable

from treadle.core.errors import InvalidInput
from treadle.evaluation.offline.bootstrap import Estimate
from treadle.evaluation.offline.gate import GatePolicy, Judgement, Threshold, Verdict
from treadle.evaluation.offline.metrics import Task
from treadle.evaluation.offline.slices import ScoredSlice
from treadle.v1 import evaluation_pb2 as pb


def task_from_proto(number: int) -> Task:
    """The task of a number of the enum; InvalidInput for UNSPECIFIED and unknown numbers."""
    try:
        return Task(number)
    except ValueError:
        what = "must be binary classification, multiclass classification or regression"
        raise InvalidInput.at("task", what) from None


def policy_from_proto(message: pb.GatePolicy) -> GatePolicy:
    """The gate policy of a message."""
    return GatePolicy(message.name, tuple(map(_threshold_from_proto, message.thresholds)), message.minimum_rows)


def gate_result_to_proto(verdict: Verdict, judgements: Iterable[Judgement], policy: pb.GatePolicy) -> pb.GateResult:
    """The message of a verdict with its judgements; each result holds the threshold and the slice that was judged."""
    of = {_threshold_from_proto(each): each for each in policy.thresholds}
    results = []
    for each in judgements:
        result = pb.ThresholdResult(
            threshold=of[each.threshold], verdict=_verdict_to_proto(each.verdict), reason=each.reason
        )
        result.threshold.slice = each.slice
        results.append(result)
    return pb.GateResult(verdict=_verdict_to_proto(verdict), results=results)


def slice_metrics_to_proto(part: ScoredSlice) -> pb.SliceMetrics:
    """The message of the metrics of one slice."""
    compared = part.comparison
    return pb.SliceMetrics(
        slice=part.name,
        rows=compared.rows,
        candidate=estimates_to_proto(compared.candidate),
        baseline=estimates_to_proto(compared.baseline),
        difference=estimates_to_proto(compared.difference),
    )


def estimates_to_proto(found: Iterable[Estimate]) -> list[pb.Estimate]:
    """The messages of estimates: values with their intervals."""
    return [pb.Estimate(metric=each.metric, value=each.value, low=each.low, high=each.high) for each in found]


def _verdict_to_proto(verdict: Verdict) -> pb.Verdict.ValueType:
    return pb.Verdict.ValueType(verdict.value)


def _threshold_from_proto(message: pb.Threshold) -> Threshold:
    return Threshold(
        message.metric,
        message.at_least if message.HasField("at_least") else None,
        message.at_most if message.HasField("at_most") else None,
        message.relative_to_baseline,
        message.slice,
        message.confident,
        message.minimum_rows,
    )
