"""Plots of a report as inline SVG.

Candidate and baseline differ in lightness, marker and line as well as colour, for print in grey and for colour-blind
readers.
"""

import base64
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from treadle.v1 import evaluation_pb2 as pb

STYLES: Mapping[str, Mapping[str, Any]] = {
    "candidate": {"color": "#00457c", "linestyle": "-", "marker": "o", "markerfacecolor": "#00457c"},
    "baseline": {"color": "#e8862a", "linestyle": "--", "marker": "s", "markerfacecolor": "white"},
}
AXIS_COLOR, REFERENCE_COLOR, GRID_COLOR = "#333333", "#888888", "#dddddd"
HEADLINE_METRIC = {
    pb.TASK_BINARY_CLASSIFICATION: ("roc_auc", "roc_auc (higher is better, 0.5 is chance)"),
    pb.TASK_MULTICLASS_CLASSIFICATION: ("accuracy", "accuracy (share of rows; higher is better)"),
    pb.TASK_REGRESSION: ("rmse", "rmse (in the unit of the label; lower is better)"),
}
"""The metric of the plot of slices by task, and the label of its axis."""
MAXIMUM_SLICES = 60


@dataclass(frozen=True, slots=True)
class Plot:
    """A picture: `source` is a data URL with an SVG, `description` the text for screen readers."""

    title: str
    description: str
    source: str


def plots_of(report: pb.EvaluationReport) -> list[Plot]:
    """The plots of a report: slice intervals, ROC, calibration and residuals, as far as the report has their data."""
    return [*_slices(report), *_curves(report)]


def _curves(report: pb.EvaluationReport) -> Iterator[Plot]:
    titles = {"roc": "ROC curve", "calibration": "Calibration", "residuals": "Residuals"}
    for kind, title in titles.items():
        curves = [curve for curve in report.curves if curve.name.partition(":")[0] == kind]
        if curves:
            description = f"{title}: {curves[0].y_label} against {curves[0].x_label}"
            yield Plot(title, description, _draw((4.6, 4.2), 1, lambda a: _lines(a[0], curves, kind)))  # noqa: B023


def _lines(axes: Any, curves: Sequence[pb.Curve], kind: str) -> None:
    diagonal = kind != "residuals"
    reference = {"roc": "chance", "calibration": "perfect", "residuals": "no error"}[kind]
    axes.plot(
        [0, 1], [0, 1] if diagonal else [0, 0], color=REFERENCE_COLOR, linestyle=":", linewidth=1.2, label=reference
    )
    for curve in curves:
        role = curve.name.partition(":")[2]
        style = {**STYLES.get(role, {"color": AXIS_COLOR}), "markersize": 5}
        if kind != "calibration":
            style["marker"] = None
        axes.plot(curve.x, curve.y, label=role, **style)
    axes.set_xlabel(curves[0].x_label)
    axes.set_ylabel(curves[0].y_label)
    axes.legend(frameon=False)
    if diagonal:
        axes.set_aspect("equal")
        axes.set_xlim(-0.02, 1.02)
        axes.set_ylim(-0.02, 1.02)


def _slices(report: pb.EvaluationReport) -> Iterator[Plot]:
    metric, label = HEADLINE_METRIC.get(report.task, ("", ""))
    parts = [part for part in report.slices if any(each.metric == metric for each in part.candidate)][:MAXIMUM_SLICES]
    if not parts:
        return
    compared = any(part.difference for part in parts)
    left_out = len(report.slices) - len(parts)
    title = f"{metric} by slice, with 95 % intervals" + (f"; {left_out} more in the tables" if left_out else "")

    def draw(axes: Sequence[Any]) -> None:
        _intervals(axes[0], parts, metric, ("candidate", "baseline"))
        _bounds(axes[0], parts, metric, report.gate)
        axes[0].set_xlabel(label)
        # Names may hold a dollar sign, which matplotlib would parse as mathematics.
        names = [f"{part.slice or 'all rows'}  ({part.rows:,})".replace("$", r"\$") for part in parts]
        axes[0].set_yticks(range(len(parts)), names)
        axes[0].set_ylabel("slice (labelled rows)")
        axes[0].set_ylim(len(parts) - 0.5, -0.5)
        axes[0].legend(frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=3)
        if compared:
            axes[1].axvline(0, color=AXIS_COLOR, linewidth=1)
            _intervals(axes[1], parts, metric, ("difference",))
            axes[1].set_xlabel("candidate − baseline, paired")
            axes[1].tick_params(left=False)
            axes[1].spines["left"].set_visible(False)

    picture = _draw((9.4, 1.3 + 0.34 * len(parts)), 2 if compared else 1, draw)
    yield Plot(title, f"{title}; the tables below have the numbers", picture)


def _intervals(axes: Any, parts: Sequence[pb.SliceMetrics], metric: str, roles: Sequence[str]) -> None:
    """Draws a point and an interval for each slice; those of two models are drawn one below the other."""
    for role in roles:
        found = [next((each for each in getattr(part, role) if each.metric == metric), None) for part in parts]
        if not any(found):
            continue
        value, low, high = (
            np.array([np.nan if each is None else getattr(each, name) for each in found])
            for name in ("value", "low", "high")
        )
        places = np.arange(len(parts)) + {"candidate": -0.14, "baseline": 0.14, "difference": 0.0}[role]
        style = STYLES.get(role, STYLES["candidate"])
        axes.hlines(places, low, high, color=style["color"], linewidth=2)
        axes.plot(value, places, **{**style, "linestyle": "none"}, markersize=5.5, label=role)


def _bounds(axes: Any, parts: Sequence[pb.SliceMetrics], metric: str, gate: pb.GateResult) -> None:
    """Draws a tick at each bound of the gate, in the slices that it judges."""
    places = {part.slice: index for index, part in enumerate(parts)}
    ticks = []
    for result in gate.results:
        rule = result.threshold
        judged = places.get(rule.slice)
        if rule.metric == metric and not rule.relative_to_baseline and judged is not None:
            bounds = [getattr(rule, name) for name in ("at_least", "at_most") if rule.HasField(name)]
            ticks += [(bound, judged) for bound in bounds]
    if ticks:
        x, y = zip(*ticks, strict=True)
        axes.plot(x, y, "|", color=AXIS_COLOR, markersize=15, markeredgewidth=1.4, label="bound of the gate")


def _draw(size: tuple[float, float], panels: int, draw: Callable[[Sequence[Any]], None]) -> str:
    """The SVG of a figure as a data URL. The figure is made without pyplot, which keeps global state."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"svg.fonttype": "path", "svg.hashsalt": "treadle", "font.size": 10}):
        figure = Figure(figsize=size, layout="constrained")
        every = figure.subplots(1, panels, squeeze=False, sharey=True, width_ratios=[1.7, 1][:panels])[0]
        for axes in every:
            axes.spines[["top", "right"]].set_visible(False)
            axes.grid(color=GRID_COLOR, linewidth=0.7)
            axes.set_axisbelow(True)
        draw(every)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode()
