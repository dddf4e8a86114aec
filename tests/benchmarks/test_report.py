"""The page shows what was measured, and the committed page is what the committed figures say."""

import re
from pathlib import Path

import pytest
from benchmarks import plot, report
from benchmarks.figures import Cell, Figures, Latency

DOCS = Path(__file__).parents[2] / "docs" / "benchmarks"


def small():
    return Figures(
        about={
            "date": "2026-01-01 10:00 UTC",
            "arguments": "make bench",
            "hardware": {"cpu": "a CPU", "cores": 2, "memory_gib": 8.0, "system": "Linux"},
            "load_generator": "h2load",
            "versions": {"python": "3.11"},
            "peers": {"fastapi": {"fastapi": "1"}},
        },
        titles={"treadle-envoy": "Treadle, Envoy host", "fastapi": "FastAPI, hand-written", "ray": "Ray Serve"},
        cells=[
            Cell("treadle-envoy", "lr", 1, 64, 28_000.4, 2.0, 5.0, 9.0, 0, 0.061, 90.0, [28_000.4]),
            Cell("treadle-envoy", "lr", 1, 1, 3_000.0, 0.3, 0.5, 0.9, 0, 0.2, 90.0, [3_000.0]),
            Cell("fastapi", "lr", 1, 64, 1_700.0, 30.0, 50.0, 90.0, 7, 0.6, 80.0, [1_700.0]),
        ],
        latencies=[Latency("treadle-envoy", "lr", 0.0, 2_000, 0, 0.3, 0.5, 0.9)],
        unavailable={"ray: lr": "it ended"},
    )


def test_a_row_for_each_server_that_was_measured():
    text = report.with_figures("before\n<!-- begin figures -->\n<!-- end -->\nafter\n", small())
    rows = [line for line in text.splitlines() if line.startswith(("| Treadle", "| FastAPI", "| Ray"))]
    assert rows == [
        "| Treadle, Envoy host | 3,000 | 28,000 | 2.0 | 5.0 | 9.0 | 0.30 | 0.50 | 0.90 | 0 | 0.061 | 90 |",
        "| FastAPI, hand-written | – | 1,700 | 30.0 | 50.0 | 90.0 | – | – | – | 7 | 0.600 | 80 |",
    ]
    assert text.startswith("before")
    assert text.endswith("after\n")


def test_what_was_not_measured_is_in_the_page():
    assert "| ray: lr | it ended |" in report.with_figures("<!-- begin figures -->\n<!-- end -->", small())


def test_writing_twice_changes_nothing(tmp_path):
    report.write_page(small(), tmp_path)
    once = (tmp_path / report.PAGE).read_text()
    report.write_page(small(), tmp_path)
    assert (tmp_path / report.PAGE).read_text() == once


def test_tables_have_as_many_cells_as_heads():
    text = report.with_figures("<!-- begin figures -->\n<!-- end -->", small())
    for table in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        assert len({line.count("|") for line in table.splitlines()}) == 1


def test_the_picture_is_drawn(tmp_path):
    plot.draw(small(), tmp_path / plot.FILE)
    assert (tmp_path / plot.FILE).read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("name", ["latest.json", "latest.png"])
def test_a_run_is_published(name):
    assert (DOCS / name).exists()


def test_the_published_page_is_what_the_published_figures_say():
    page = (DOCS / "README.md").read_text()
    assert page == report.with_figures(page, Figures.read(DOCS / "latest.json")), (
        "run make bench, or write the page again"
    )
