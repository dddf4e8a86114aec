"""The model card of a version in Markdown: signature, parameters, metrics, evaluation reports and lineage."""

from collections.abc import Iterator, Sequence

from treadle.cli.ui.serving_form import serving_form
from treadle.cli.ui.to_jsonable import time_text, verdict_text
from treadle.client.references import format_ref
from treadle.evaluation.report.report import estimate_text
from treadle.rpc.codec.columns import from_proto
from treadle.v1 import evaluation_pb2, registry_pb2, types_pb2


def model_card(version: registry_pb2.ModelVersion, reports: Sequence[evaluation_pb2.EvaluationReport]) -> str:
    """The model card; `reports` are sorted newest first."""
    return "\n".join(_lines(version, reports)).rstrip() + "\n"


def _lines(version: registry_pb2.ModelVersion, reports: Sequence[evaluation_pb2.EvaluationReport]) -> Iterator[str]:
    manifest = version.manifest
    yield f"# {format_ref(version.ref)}"
    yield ""
    if manifest.description:
        yield manifest.description
        yield ""
    made = f"Registered {time_text(version.created_micros)} by {version.created_by or 'unknown'}"
    aliases = f"; known as {', '.join(version.aliases)}" if version.aliases else ""
    yield f"{made}{aliases}. Backend `{manifest.backend}`."
    yield ""
    yield f"Served by {serving_form(manifest)}."
    yield ""
    yield from _inputs(manifest)
    yield from _table("Parameters", ("parameter", "value"), sorted(manifest.parameters.items()))
    metrics = [(name, f"{value:.4f}") for name, value in sorted(manifest.metrics.items())]
    yield from _table("Metrics at training time", ("metric", "value"), metrics)
    for report in reports:
        yield from _report(report)
    yield from _lineage(manifest)


def _inputs(manifest: registry_pb2.Manifest) -> Iterator[str]:
    fed = f"Fed by the feature service `{manifest.feature_service}`." if manifest.feature_service else "Fed by tensors."
    yield from ("## What it takes and gives", "", fed, "")
    yield from ("| | tensor | type | shape | columns |", "|---|---|---|---|---|")
    for what, specs in (("in", manifest.signature.inputs), ("out", manifest.signature.outputs)):
        for spec in specs:
            yield f"| {what} | {spec.name} | {from_proto(spec.dtype)} | {list(spec.shape)} | {_columns(spec)} |"
    yield ""


def _columns(spec: types_pb2.TensorSpec) -> str:
    units = list(spec.units) if len(spec.units) == len(spec.columns) else [""] * len(spec.columns)
    return ", ".join(f"{name} ({unit})" if unit else name for name, unit in zip(spec.columns, units, strict=True))


def _report(report: evaluation_pb2.EvaluationReport) -> Iterator[str]:
    name = report.dataset.name or report.dataset.path
    yield from (f"## Evaluation on {name}", "")
    against = f", against {format_ref(report.baseline)}" if report.baseline.model else ""
    gate = f" Gate: **{verdict_text(report.gate.verdict)}**." if report.gate.results else ""
    yield from (f"{report.rows:,} rows, {time_text(report.created_micros)}{against}.{gate}", "")
    rows = [
        (part.slice or "all rows", f"{part.rows:,}", each.metric, estimate_text(each))
        for part in report.slices
        for each in part.candidate
    ]
    yield from _rows(("slice", "rows", "metric", "value [95 %]"), rows)
    for result in report.gate.results:
        if result.verdict != evaluation_pb2.VERDICT_PASS:
            yield f"- {result.reason}"
    yield ""


def _lineage(manifest: registry_pb2.Manifest) -> Iterator[str]:
    lineage = manifest.lineage
    pairs = [
        ("data (SHA-256)", lineage.data_digest),
        ("code", lineage.code_revision),
        ("trained by", lineage.trained_by),
        ("made from", format_ref(lineage.parent)),
        *sorted(lineage.environment.items()),
    ]
    yield from _table("Where it came from", ("what", "value"), [pair for pair in pairs if pair[1]])


def _table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    if rows:
        yield from (f"## {title}", "")
        yield from _rows(columns, rows)


def _rows(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(columns)} |"
    yield "|" + "---|" * len(columns)
    for row in rows:
        yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |"
    yield ""
