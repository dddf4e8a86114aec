"""The plot of a run: requests a second and the latency of sequential requests, by model."""

from pathlib import Path
from typing import Any

from benchmarks.figures import Figures, Key
from benchmarks.models import TITLES
from benchmarks.targets import ECHO

FILE = "latest.png"
_OURS, _PEER, _ECHO, _INK, _SOFT = "#0b6e4f", "#9aa5b1", "#d9c48f", "#1f2933", "#52606d"


def draw(figures: Figures, file: Path) -> None:
    """Writes the plot; each bar is labelled with its number."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    models = [model for model in TITLES if any(figures.of_task(model))]
    if not models:
        return
    with pyplot.rc_context({"font.size": 9, "font.family": "DejaVu Sans", "text.color": _INK}):
        servers = [name for name in figures.titles if any(figures.cell(Key(name, model)) for model in models)]
        height = 1.5 + len(models) * (0.75 + 0.24 * len(servers))
        figure, grid = pyplot.subplots(
            len(models), 2, figsize=(11.5, height), squeeze=False, sharex="col", sharey="row"
        )
        for model, (rates, lone) in zip(models, grid, strict=True):
            _panel(figures, servers, model, rates, lone)
        grid[0][0].set_title("requests a second, 64 in flight (more is better)", loc="left", color=_SOFT)
        grid[0][1].set_title("lone request, median milliseconds (less is better)", loc="left", color=_SOFT)
        hardware = figures.about["hardware"]
        figure.suptitle(
            f"One row a request, one server process, {hardware['cores']} cores shared with the load generator",
            x=0.01, ha="left", fontsize=12, fontweight="bold",
        )  # fmt: skip
        figure.tight_layout(rect=(0, 0, 1, 0.99), h_pad=1.2, w_pad=2.0)
        file.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(file, dpi=130)
        pyplot.close(figure)


def _panel(figures: Figures, servers: list[str], model: str, rates: Any, lone: Any) -> None:
    shown = [name for name in servers if figures.cell(Key(name, model))]
    cells = {name: figures.cell(Key(name, model)) for name in shown}
    shown.sort(key=lambda name: cells[name].requests_per_second if cells[name] else 0.0)  # type: ignore[union-attr]
    speeds = [cells[name].requests_per_second for name in shown]  # type: ignore[union-attr]  # only what was measured
    waits = [found.p50_ms if (found := figures.latency(name, model)) else 0.0 for name in shown]
    _bars(rates, shown, speeds, "{:,.0f}")
    _bars(lone, shown, waits, "{:.2f}")
    rates.set_yticks(range(len(shown)), [figures.titles[name] for name in shown])
    for label, name in zip(rates.get_yticklabels(), shown, strict=True):
        label.set_fontweight("bold" if name.startswith("treadle") else "normal")
    rates.set_ylabel(TITLES[model].replace(", ", ",\n"), fontweight="bold", labelpad=10)


def _bars(axis: Any, names: list[str], values: list[float], form: str) -> None:
    colours = [_OURS if name.startswith("treadle") else _ECHO if name == ECHO else _PEER for name in names]
    axis.barh(range(len(names)), values, color=colours, height=0.72)
    widest = max(values, default=1.0) or 1.0
    axis.set_xlim(0, max(axis.get_xlim()[1], 1.13 * widest))
    for place, value in enumerate(values):
        if value:
            axis.annotate(form.format(value), (value, place), (4, 0), textcoords="offset points", va="center", size=8)
    axis.xaxis.set_major_formatter("{x:,g}")
    for side in ("top", "right", "left"):
        axis.spines[side].set_visible(False)
    axis.tick_params(axis="y", length=0)
    axis.grid(axis="x", color="#e4e7eb", linewidth=0.8)
    axis.set_axisbelow(True)
