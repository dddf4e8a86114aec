"""Verdicts of the gate, and policy files."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from treadle.core.errors import InvalidInput, NotFound
from treadle.evaluation.offline.bootstrap import Comparison, Estimate
from treadle.evaluation.offline.gate import GatePolicy, Threshold, Verdict, check_policy, judge, overall
from treadle.evaluation.offline.gate_policy import parse_policy, read_policy
from treadle.evaluation.offline.slices import ScoredSlice
from treadle.v1 import evaluation_pb2 as pb

NAN = float("nan")


def scored(name: str, value: float, low: float = NAN, high: float = NAN, rows: int = 1204) -> ScoredSlice:
    estimate = (Estimate("roc_auc", value, low, high),)
    return ScoredSlice(name, Comparison(rows, estimate, estimate, (Estimate("roc_auc", value - 0.7, low, high),)))


SLICES = [scored("", 0.74, 0.72, 0.76), scored("origin=EWR", 0.71, 0.69, 0.73), scored("origin=JFK", 0.8, rows=5)]


@pytest.mark.parametrize(
    ("threshold", "verdict", "reason"),
    [
        (Threshold("roc_auc", 0.7), Verdict.PASS, "roc_auc 0.74 [0.72, 0.76] is at least 0.7 (1,204 rows)"),
        (Threshold("roc_auc", at_most=0.7), Verdict.FAIL, "roc_auc 0.74 [0.72, 0.76] is over 0.7 (1,204 rows)"),
        (Threshold("roc_auc", 0.73, confident=True), Verdict.FAIL, "is not surely at least 0.73"),
        (Threshold("roc_auc", 0.71, confident=True), Verdict.PASS, "is surely at least 0.71"),
        (Threshold("roc_auc", 0.75, slice="origin=EWR"), Verdict.FAIL, "origin=EWR: roc_auc 0.71"),
        (Threshold("roc_auc", 0.5, slice="origin=JFK", confident=True), Verdict.NOT_ENOUGH_DATA, "no 95 % interval"),
        (Threshold("roc_auc", 0.5, slice="origin=JFK", minimum_rows=9), Verdict.NOT_ENOUGH_DATA, "5 labelled rows"),
        (Threshold("roc_auc", 0.0, relative_to_baseline=True), Verdict.PASS, "difference to the baseline 0.04"),
    ],
)
def test_a_threshold_is_judged_with_a_reason(threshold: Threshold, verdict: Verdict, reason: str) -> None:
    found, (judgement,) = judge(GatePolicy(thresholds=(threshold,)), SLICES)
    assert found is judgement.verdict is verdict
    assert reason in judgement.reason


def test_a_star_pattern_judges_each_slice_of_the_column() -> None:
    verdict, judgements = judge(GatePolicy(thresholds=(Threshold("roc_auc", 0.75, slice="origin=*"),)), SLICES)
    assert [each.verdict for each in judgements] == [Verdict.FAIL, Verdict.PASS]
    assert verdict is Verdict.FAIL


def test_an_undefined_metric_is_not_enough_data() -> None:
    verdict, _ = judge(GatePolicy(thresholds=(Threshold("roc_auc", 0.5),)), [scored("", NAN)])
    assert verdict is Verdict.NOT_ENOUGH_DATA


@given(st.lists(st.sampled_from([Verdict.PASS, Verdict.FAIL, Verdict.NOT_ENOUGH_DATA]), min_size=1))
def test_fail_beats_not_enough_data_beats_pass(verdicts: list[Verdict]) -> None:
    order = [Verdict.PASS, Verdict.NOT_ENOUGH_DATA, Verdict.FAIL]
    assert overall(verdicts) is max(verdicts, key=order.index)


@pytest.mark.parametrize(
    ("threshold", "words"),
    [
        (Threshold("auc", 0.5), "unknown metric"),
        (Threshold("roc_auc"), "set at_least or at_most"),
        (Threshold("roc_auc", 0.6, 0.5), "must not be above"),
        (Threshold("roc_auc", 0.6, relative_to_baseline=True), "needs a baseline"),
        (Threshold("roc_auc", 0.6, slice="JFK"), "column=value"),
        (Threshold("roc_auc", NAN), "finite"),
    ],
)
def test_a_policy_that_cannot_be_judged_is_refused(threshold: Threshold, words: str) -> None:
    with pytest.raises(InvalidInput, match=words) as caught:
        check_policy(GatePolicy(thresholds=(threshold,)), ["roc_auc"], has_baseline=False)
    assert caught.value.violations[0].field == "gate.thresholds[0]"


GOOD = """name = "flights"
minimum_rows = 10

[[threshold]]
metric = "roc_auc"
at_least = 0.7
"""


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (GOOD + "at_lest = 1", r"line 7: \"at_lest\" is unknown; did you mean 'at_least'"),
        (GOOD.replace("10", '"10"'), 'line 2: "minimum_rows" must be a whole number'),
        (GOOD.replace("0.7", "true"), 'line 6: "at_least" must be a finite number'),
        (GOOD.replace("at_least = 0.7", ""), 'line 4: "at_least" is missing'),
        (GOOD + '[[threshold]]\nmetric = "f1"\nat_most = inf', 'line 9: "at_most" must be a finite number'),
        (GOOD.replace("0.7", "9" * 400), 'line 6: "at_least" must be a finite number'),
        (GOOD.replace("0.7", "9" * 5000), "policy: .*5000 digits"),
        (GOOD + "[[treshold]]", 'line 7: "treshold" is unknown'),
        ("name = 'x'", "at least one"),
        ("name = ", "Invalid value"),
    ],
)
def test_an_error_in_a_policy_file_names_its_line(text: str, words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        parse_policy(text)


def test_a_missing_policy_file_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="does not exist"):
        read_policy(tmp_path / "none.toml")


finite = st.floats(allow_nan=False, allow_infinity=False)
thresholds = st.builds(
    pb.Threshold,
    metric=st.text(st.characters(exclude_categories=["Cs"]), min_size=1),
    at_least=finite,
    at_most=st.none() | finite,
    relative_to_baseline=st.booleans(),
    slice=st.text(st.characters(exclude_categories=["Cs"])),
    confident=st.booleans(),
    minimum_rows=st.integers(0, 2**62),
)


def write_policy(policy: pb.GatePolicy) -> str:
    lines = [f"name = {toml(policy.name)}"] if policy.name else []
    lines += [f"minimum_rows = {policy.minimum_rows}"] if policy.minimum_rows else []
    for threshold in policy.thresholds:
        lines += ["[[threshold]]", *(f"{field.name} = {toml(value)}" for field, value in threshold.ListFields())]
    return "\n".join(lines) + "\n"


def toml(value: str | float | bool) -> str:
    if isinstance(value, str):
        return '"' + "".join(map(escaped, value)) + '"'
    return str(value).lower() if isinstance(value, bool) else repr(value)


def escaped(character: str) -> str:
    if character in '"\\':
        return "\\" + character
    return f"\\u{ord(character):04x}" if ord(character) < 32 or ord(character) == 127 else character


@given(
    st.builds(
        pb.GatePolicy,
        name=st.text(st.characters(exclude_categories=["Cs"])),
        thresholds=st.lists(thresholds, min_size=1, max_size=3),
        minimum_rows=st.integers(0, 2**62),
    )
)
def test_a_policy_written_and_read_is_the_same(policy: pb.GatePolicy) -> None:
    assert parse_policy(write_policy(policy)) == policy
