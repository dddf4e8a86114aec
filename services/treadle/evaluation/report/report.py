"""Rendering of evaluation reports: Markdown, and one self-contained HTML page with plots."""

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
"""The order of results in a report: failed thresholds first."""
_TASKS: Mapping[int, str] = {
    pb.TASK_BINARY_CLASSIFICATION: "binary classification",
    pb.TASK_MULTICLASS_CLASSIFICATION: "multiclass classification",
    pb.TASK_REGRESSION: "regression",
}


@dataclass(frozen=True, slots=True)
class MetricRow:
    """A row of the metrics table: one metric of one slice, formatted."""

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
    environment.filters["cell"] = _escape_cell
    return environment.get_template(template).render(
        report=report,
        candidate=_name(report.ref),
        baseline=_name(report.baseline),
        dataset=report.dataset.name or report.dataset.path,
        task=_TASKS.get(report.task, "unknown task"),
        created=datetime.fromtimestamp(report.created_micros / 1e6, UTC).strftime("%Y-%m-%d %H:%M UTC"),
        verdict_words=_gate_summary(report.gate),
        results=sorted(report.gate.results, key=lambda result: _ORDER.index(result.verdict)),
        slices=[(part.slice or "All rows", part.rows, _rows(part)) for part in report.slices],
        plots=plots,
    )


def _gate_summary(gate: pb.GateResult) -> str:
    """The results of a gate as text: "3 of 5 rules hold, 1 failed, 1 without enough data"; "" without a gate."""
    if not gate.results:
        return ""
    count = Counter(result.verdict for result in gate.results)
    words = f"{count[pb.VERDICT_PASS]} of {len(gate.results)} rules hold"
    words += f", {count[pb.VERDICT_FAIL]} failed" if count[pb.VERDICT_FAIL] else ""
    unsure = count[pb.VERDICT_NOT_ENOUGH_DATA]
    return words + (f", {unsure} without enough data" if unsure else "")


def _rows(part: pb.SliceMetrics) -> list[MetricRow]:
    baseline = {each.metric: each for each in part.baseline}
    difference = {each.metric: each for each in part.difference}
    return [
        MetricRow(
            each.metric,
            estimate_text(each),
            estimate_text(baseline[each.metric]) if each.metric in baseline else "",
            estimate_text(difference[each.metric], signed=True) if each.metric in difference else "",
        )
        for each in part.candidate
    ]


def estimate_text(estimate: pb.Estimate, *, signed: bool = False) -> str:
    """An estimate as text: "0.7123 [0.7001, 0.7244]"; without an interval "0.7123"; "–" where it is undefined."""
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


def _escape_cell(text: str) -> str:
    """Text escaped for a cell of a Markdown table."""
    escaped = "".join("\\" + character if character in "\\|`*_[]<>" else character for character in str(text))
    return escaped.replace("\n", " ").replace("\r", " ")
