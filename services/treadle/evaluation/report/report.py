"""Reports for people: Markdown, and one HTML page that holds its plots and needs nothing else."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any

from treadle.evaluation.report.plots import plots_of
from treadle.v1 import evaluation_pb2 as pb
from treadle.v1 import types_pb2

_VERDICTS: Mapping[int, tuple[str, str]] = {
    pb.VERDICT_PASS: ("PASS", "pass"),
    pb.VERDICT_FAIL: ("FAIL", "fail"),
    pb.VERDICT_NOT_ENOUGH_DATA: ("NOT ENOUGH DATA", "unsure"),
    pb.VERDICT_UNSPECIFIED: ("NO GATE", "none"),
}
_ORDER = (pb.VERDICT_FAIL, pb.VERDICT_NOT_ENOUGH_DATA, pb.VERDICT_PASS, pb.VERDICT_UNSPECIFIED)
"""What is wrong stands first."""
_TASKS: Mapping[int, str] = {
    pb.TASK_BINARY_CLASSIFICATION: "binary classification",
    pb.TASK_MULTICLASS_CLASSIFICATION: "multiclass classification",
    pb.TASK_REGRESSION: "regression",
}


@dataclass(frozen=True, slots=True)
class Row:
    """One metric of one slice, in words."""

    metric: str
    candidate: str
    baseline: str
    difference: str


def to_markdown(report: pb.EvaluationReport) -> str:
    """The report as Markdown, without plots."""
    return _render("report.md.j2", report, escape=False, plots=())


def to_html(report: pb.EvaluationReport) -> str:
    """The report as one HTML page with its plots inside."""
    return _render("report.html.j2", report, escape=True, plots=plots_of(report))


def _render(template: str, report: pb.EvaluationReport, *, escape: bool, plots: Sequence[Any]) -> str:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("treadle.evaluation"),
        autoescape=escape,  # noqa: S701  # off for Markdown only, which escapes its cells
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["verdict"] = lambda number: _VERDICTS[number][0]
    environment.filters["verdict_class"] = lambda number: _VERDICTS[number][1]
    environment.filters["cell"] = _cell
    return environment.get_template(template).render(
        report=report,
        candidate=_name(report.ref),
        baseline=_name(report.baseline),
        dataset=report.dataset.name or report.dataset.path,
        task=_TASKS.get(report.task, "unknown task"),
        created=datetime.fromtimestamp(report.created_micros / 1e6, UTC).strftime("%Y-%m-%d %H:%M UTC"),
        verdict_words=_in_words(report.gate),
        results=sorted(report.gate.results, key=lambda result: _ORDER.index(result.verdict)),
        slices=[(part.slice or "All rows", part.rows, _rows(part)) for part in report.slices],
        plots=plots,
    )


def _in_words(gate: pb.GateResult) -> str:
    """ "3 of 5 rules hold, 1 fails, 1 has not enough data"; empty without a gate."""
    if not gate.results:
        return ""
    count = Counter(result.verdict for result in gate.results)
    words = f"{count[pb.VERDICT_PASS]} of {len(gate.results)} rules hold"
    words += f", {count[pb.VERDICT_FAIL]} failed" if count[pb.VERDICT_FAIL] else ""
    unsure = count[pb.VERDICT_NOT_ENOUGH_DATA]
    return words + (f", {unsure} without enough data" if unsure else "")


def _rows(part: pb.SliceMetrics) -> list[Row]:
    baseline = {each.metric: each for each in part.baseline}
    difference = {each.metric: each for each in part.difference}
    return [
        Row(
            each.metric,
            shown(each),
            shown(baseline[each.metric]) if each.metric in baseline else "",
            shown(difference[each.metric], signed=True) if each.metric in difference else "",
        )
        for each in part.candidate
    ]


def shown(estimate: pb.Estimate, *, signed: bool = False) -> str:
    """ "0.7123 [0.7001, 0.7244]"; "–" where undefined; no interval where there is none."""
    number = partial(_number, signed=signed)
    if math.isnan(estimate.value):
        return "–"
    if math.isnan(estimate.low):
        return number(estimate.value)
    return f"{number(estimate.value)} [{number(estimate.low)}, {number(estimate.high)}]"


def _number(value: float, *, signed: bool) -> str:
    text = f"{value:+.4f}" if signed else f"{value:.4f}"
    return text if abs(value) < 1e6 else f"{value:.4g}"


def _name(ref: types_pb2.ModelRef) -> str:
    return f"{ref.model}/{ref.version}" if ref.model else ""


def _cell(text: str) -> str:
    """Text that cannot break out of a Markdown table cell."""
    escaped = "".join("\\" + character if character in "\\|`*_[]<>" else character for character in str(text))
    return escaped.replace("\n", " ").replace("\r", " ")
