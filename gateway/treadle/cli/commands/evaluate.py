"""`treadle evaluate`: evaluates a version on a dataset, compares it with a baseline, and applies a gate."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from treadle.cli.command import FAILED, Session, command

if TYPE_CHECKING:
    from treadle.v1 import evaluation_pb2


@command(on_mesh=True)
@click.argument("version")
@click.argument("dataset")
@click.option("--label", required=True, metavar="COLUMN", help="The truth.")
@click.option("--task", type=click.Choice(["binary", "multiclass", "regression"]), default="binary", show_default=True)
@click.option("--slice", "slices", multiple=True, metavar="COLUMN", help="Judge each of its values; may be repeated.")
@click.option("--baseline", default="", metavar="VERSION", help="Compare with it, on the same rows.")
@click.option("--gate", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE.toml", help="A gate policy.")
@click.option("--score-output", default="", metavar="NAME", help="The output that holds the score.")
@click.option("--name", default="", help="What to call the dataset.")
@click.option("--resamples", type=click.IntRange(0), default=0, help="Of the bootstrap; 200 without.")
@click.option("--seed", type=int, default=0, help="Of the bootstrap.")
@click.option(
    "--report",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Write it there: .html with plots, else Markdown.",
)
async def evaluate(
    session: Session,
    version: str,
    dataset: str,
    label: str,
    task: str,
    slices: tuple[str, ...],
    baseline: str,
    gate: Path | None,
    score_output: str,
    name: str,
    resamples: int,
    seed: int,
    report: Path | None,
) -> None:
    """Judge a version on a dataset.

    VERSION is MODEL/3 or MODEL@alias; DATASET a Parquet file, folder or glob as the evaluation service sees it.
    The report is kept with the version. Exit status 1 unless the gate passes.
    """
    from treadle.cli.ui.to_jsonable import to_jsonable
    from treadle.evaluation.offline.gate_policy import read_policy

    policy = None if gate is None else read_policy(gate)
    where = str(Path(dataset).absolute()) if "://" not in dataset else dataset  # noqa: ASYNC240  # it does not access the disk
    async with session.client() as client:
        with session.out.progress("evaluating") as tell:
            found = await client.evaluate(
                version,
                where,
                label=label,
                task=task,
                slices=slices,
                score_output=score_output,
                baseline=baseline,
                gate=policy,
                dataset_name=name,
                bootstrap_resamples=resamples,
                seed=seed,
                progress=lambda at: tell(at.stage, at.rows_done, at.rows_total),
            )
    if report is not None:
        _write(found, report)
    session.out.show(to_jsonable(found), lambda: _picture(found))
    from treadle.v1 import evaluation_pb2

    if gate is not None and found.gate.verdict != evaluation_pb2.VERDICT_PASS:
        raise SystemExit(FAILED)


def _write(found: "evaluation_pb2.EvaluationReport", path: Path) -> None:
    from treadle.evaluation.report.report import to_html, to_markdown

    path.write_text(to_html(found) if path.suffix == ".html" else to_markdown(found), encoding="utf-8")


def _picture(report: "evaluation_pb2.EvaluationReport") -> Any:
    from rich.console import Group

    from treadle.cli.ui.output import facts, table
    from treadle.cli.ui.to_jsonable import verdict_text
    from treadle.client.references import format_ref
    from treadle.evaluation.report.report import estimate_text

    rows = []
    for part in report.slices:
        differences = {each.metric: each for each in part.difference}
        for each in part.candidate:
            gap = differences.get(each.metric)
            cells = [part.slice or "all rows", f"{part.rows:,}", each.metric, estimate_text(each)]
            rows.append([*cells, "" if gap is None else estimate_text(gap, signed=True)])
    judged = [(verdict_text(each.verdict), each.reason) for each in report.gate.results]
    about = (
        ("version", format_ref(report.ref)),
        ("baseline", format_ref(report.baseline)),
        ("rows", f"{report.rows:,}"),
        ("gate", verdict_text(report.gate.verdict) if judged else ""),
    )
    against = f"against {format_ref(report.baseline)}" if report.baseline.model else ""
    parts: list[Any] = [facts(about), table(("slice", ">rows", "metric", ">value [95 %]", f">{against}"), rows)]
    if judged:
        parts.append(table(("verdict", "why"), judged))
    return Group(*parts)
