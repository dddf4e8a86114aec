"""Targets are ratios of two figures of one run; what was not measured is missed."""

from pathlib import Path

import pytest
from benchmarks.__main__ import check
from benchmarks.figures import Cell, Figures, InProcess, Latency, Soak
from benchmarks.report import missed, terminal
from benchmarks.targets import TARGETS, target_results


def cell(server, task, requests_per_second, rows=1):
    return Cell(server, task, rows, 64, requests_per_second, 1.0, 2.0, 3.0, 0, 0.1, 100.0, [requests_per_second])


def lone(server, task, p50_ms):
    return Latency(server, task, 0.0, 1_000, 0, p50_ms, 2 * p50_ms, 3 * p50_ms)


def meeting_all():
    """Figures that meet every target."""
    cells = [cell("treadle-envoy", model, 30_000.0) for model in ("lr", "rf", "mlp")]
    cells += [cell("echo", model, 36_000.0) for model in ("lr", "rf", "mlp")]
    cells += [
        cell(server, model, 250.0) for server in ("mlserver", "pytriton", "fastapi") for model in ("lr", "rf", "mlp")
    ]
    cells += [cell("treadle-grpcio", model, 5_000.0) for model in ("lr", "rf")]
    cells += [cell("grpcaio", model, 200.0) for model in ("lr", "rf")]
    cells += [cell("treadle-envoy", "direct", 20_000.0), cell("treadle-envoy", "chain", 10_000.0)]
    cells += [cell("treadle-envoy-colocated", "chain", 15_000.0)]
    cells += [
        cell("treadle-envoy", f"traced {percent} %", rate)
        for percent, rate in ((0, 20_000.0), (10, 19_000.0), (100, 12_000.0))
    ]
    cells += [cell("treadle-envoy", model, 20_000.0, rows=64) for model in ("lr", "rf")]
    latencies = [lone("treadle-envoy", "rf", 0.3), lone("grpcaio", "rf", 6.0), lone("treadle-envoy", "direct", 0.3)]
    latencies += [lone("treadle-envoy", "chain", 1.5), lone("treadle-envoy-colocated", "chain", 0.5)]
    alone = [InProcess(model, 64, 2_000_000.0) for model in ("lr", "rf")]
    return Figures(
        about={"hardware": {"cores": 2}},
        cells=cells,
        latencies=latencies,
        in_process=alone,
        soak=Soak(600.0, 20_000.0, 0.7, 12_000_000, 0, 100.0, 101.0),
    )


def only_missed(figures):
    return [f"{each.target.what} / {each.target.against}" for each in target_results(figures) if not each.met]


def replaced(figures, found, **values):
    """The figures with one cell or latency changed."""
    for kept in (figures.cells, figures.latencies):
        kept[:] = [type(each)(**{**vars(each), **values}) if each is found else each for each in kept]
    return figures


def test_every_target_can_be_met():
    assert only_missed(meeting_all()) == []
    assert missed(meeting_all()) == []


def test_without_figures_every_target_is_missed():
    assert len(only_missed(Figures())) == len(TARGETS)
    assert "not measured" in missed(Figures())[0]


def test_a_ratio_below_its_limit_is_named_with_what_it_was():
    figures = meeting_all()
    found = next(each for each in figures.cells if (each.server, each.task) == ("fastapi", "rf"))
    replaced(figures, found, requests_per_second=600.0)
    assert missed(figures) == ["RF, Envoy host, req/s, against FastAPI, hand-written: 50×, limit ≥ 100×"]


def test_mlserver_counts_in_its_faster_configuration():
    figures = meeting_all()
    figures.cells.append(cell("mlserver-wide", "rf", 5_000.0))
    assert only_missed(figures) == ["RF, Envoy host, req/s / MLServer, its best configuration"]


def test_latency_ratios_have_a_limit_from_above():
    figures = meeting_all()
    found = next(each for each in figures.latencies if (each.server, each.task) == ("treadle-envoy", "chain"))
    assert only_missed(replaced(figures, found, p50_ms=1.9)) == [
        "whole chain, three processes, lone p50 / ModelInfer alone"
    ]


def test_one_error_in_a_soak_is_too_many():
    figures = meeting_all()
    figures.soak = Soak(600.0, 20_000.0, 0.7, 12_000_000, 1, 100.0, 103.0)
    assert only_missed(figures) == [
        "soak, requests answered / requests sent",
        "soak, memory at the end / after a minute",
    ]


def test_the_terminal_shows_each_ratio_beside_its_limit():
    shown = terminal(meeting_all())
    assert "✗" not in shown
    assert f"{len(TARGETS)} of {len(TARGETS)} targets met" in shown
    line = next(line for line in shown.splitlines() if line.startswith("RF, lone p50"))
    assert line.split()[-4:] == ["20×", "≥", "10×", "✓"]


def test_what_could_not_be_measured_is_told():
    figures = meeting_all()
    figures.unavailable["ray"] = "it ended"
    assert "not measured: ray: it ended" in terminal(figures)


@pytest.mark.parametrize("soak", [True, False])
def test_the_check_names_what_is_missed(tmp_path: Path, capsys, soak):
    figures = meeting_all()
    figures.soak = figures.soak if soak else None
    figures.write(tmp_path / "latest.json")
    assert check(tmp_path / "latest.json") == (0 if soak else 1)
    told = capsys.readouterr().out
    assert ("missed: soak, requests answered" in told) is not soak


def test_the_check_of_figures_that_are_not_there_fails(tmp_path, capsys):
    assert check(tmp_path / "latest.json") == 1
    assert "make bench" in capsys.readouterr().out


def test_figures_are_read_as_they_were_written(tmp_path):
    once, again = tmp_path / "once.json", tmp_path / "again.json"
    meeting_all().write(once)
    Figures.read(once).write(again)
    assert again.read_text() == once.read_text()
    assert Figures.read(once).cells == meeting_all().cells
