"""Reports show the verdict first and every number, load nothing from elsewhere, and escape names."""

import base64
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest

from treadle.evaluation.report.plots import plots_of
from treadle.evaluation.report.report import estimate_text, to_html, to_markdown
from treadle.v1 import evaluation_pb2 as pb
from treadle.v1 import types_pb2

NAN = float("nan")
HOSTILE = 'a|b<script>alert(1)</script>"$x_1$\n&'


def estimate(metric: str, value: float, low: float = NAN, high: float = NAN) -> pb.Estimate:
    return pb.Estimate(metric=metric, value=value, low=low, high=high)


def result(verdict: "pb.Verdict.ValueType", reason: str, slice_name: str = "") -> pb.ThresholdResult:
    rule = pb.Threshold(metric="roc_auc", at_least=0.7, slice=slice_name)
    return pb.ThresholdResult(threshold=rule, verdict=verdict, reason=reason)


@pytest.fixture
def report() -> pb.EvaluationReport:
    part = pb.SliceMetrics(
        slice="origin=" + HOSTILE,
        rows=1234,
        candidate=[estimate("roc_auc", 0.8, 0.75, 0.85), estimate("f1", NAN)],
        baseline=[estimate("roc_auc", 0.7, 0.65, 0.75), estimate("f1", 0.5)],
        difference=[estimate("roc_auc", 0.1, 0.05, 0.15), estimate("f1", NAN)],
    )
    every = pb.SliceMetrics()
    every.CopyFrom(part)
    every.slice = ""
    return pb.EvaluationReport(
        ref=types_pb2.ModelRef(model="delay", version=7),
        baseline=types_pb2.ModelRef(model="delay", version=6),
        dataset=pb.Dataset(path="/data/x.parquet", name=HOSTILE, label_column="late", slice_columns=["origin"]),
        dataset_digest="ab" * 32,
        task=pb.TASK_BINARY_CLASSIFICATION,
        rows=1234,
        slices=[every, part],
        gate=pb.GateResult(
            verdict=pb.VERDICT_FAIL,
            results=[
                result(pb.VERDICT_PASS, "fine"),
                result(pb.VERDICT_NOT_ENOUGH_DATA, "too few"),
                result(pb.VERDICT_FAIL, "too bad: " + HOSTILE, "origin=" + HOSTILE),
            ],
        ),
        curves=[pb.Curve(name="roc:candidate", x_label="x", y_label="y", x=[0, 1], y=[0, 1])],
        created_micros=1_700_000_000_000_000,
        trace_id="cd" * 16,
        bootstrap_resamples=200,
    )


class Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in {"src", "href", "srcset", "action"}]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_shows_the_verdict_first_and_is_self_contained(report: pb.EvaluationReport) -> None:
    page = Page()
    page.feed(to_html(report))
    assert "script" not in page.tags
    assert "link" not in page.tags
    assert all(address.startswith("data:image/svg+xml;base64,") for address in page.addresses)
    order = ["FAIL", "1 of 3 rules hold, 1 failed, 1 without enough data.", "too bad", "too few", "fine"]
    order += [
        "What was evaluated",
        "delay/6",
        "/data/x.parquet",
        "ab" * 32,
        "late",
        "cd" * 16,
        "0.8000 [0.7500, 0.8500]",
    ]
    places = [page.text.index(words) for words in order]
    assert places == sorted(places)
    assert HOSTILE.replace("\n", "") in page.text.replace("\n", "")


def test_markdown_cells_are_escaped(report: pb.EvaluationReport) -> None:
    text = to_markdown(report)
    assert text.startswith("# Evaluation of delay/7: FAIL\n\n1 of 3 rules hold")
    assert "| roc\\_auc | 0.8000 [0.7500, 0.8500] | 0.7000 [0.6500, 0.7500] | +0.1000 [+0.0500, +0.1500] |" in text
    assert "| f1 | – | 0.5000 | – |" in text
    for row in re.findall(r"^\|.*$", text, re.MULTILINE):
        assert row.endswith("|")
        assert "<script>" not in row
    assert "a\\|b" in text


def test_a_report_without_gate_baseline_or_plots(report: pb.EvaluationReport) -> None:
    bare = pb.EvaluationReport(ref=report.ref, task=report.task, rows=3, slices=[pb.SliceMetrics(rows=3)])
    assert "NO GATE" in to_html(bare)
    assert "Baseline" not in to_html(bare) + to_markdown(bare)
    assert not plots_of(bare)


def test_plots_have_a_title_and_a_description(report: pb.EvaluationReport) -> None:
    slices, roc = plots_of(report)
    assert slices.title == "roc_auc by slice, with 95 % intervals"
    assert roc.description == "ROC curve: y against x"
    for plot in (slices, roc):
        root = ElementTree.fromstring(base64.b64decode(plot.source.partition(",")[2]))  # our own
        assert root.tag.endswith("svg")
    assert plots_of(report) == [slices, roc]  # the same report gives the same bytes


def test_a_plot_of_many_slices_is_cut_and_says_so(report: pb.EvaluationReport) -> None:
    report.slices.extend([report.slices[0]] * 70)
    assert plots_of(report)[0].title.endswith("; 12 more in the tables")


def test_numbers_are_formatted() -> None:
    assert estimate_text(estimate("m", 1234567.0)) == "1.235e+06"
    assert estimate_text(estimate("m", NAN)) == "–"
    assert estimate_text(estimate("m", 0.5), signed=True) == "+0.5000"
