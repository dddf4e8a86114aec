"""`treadle predict`: requests predictions by entity keys or by tensors."""

from collections.abc import Callable, Mapping
from math import isnan
from typing import TYPE_CHECKING, Any, TypeVar

import click

from treadle.cli.command import Session, command

if TYPE_CHECKING:
    from treadle.client import Feature, FeatureProvenance, Prediction

FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])
_ROW_OPTIONS = (
    click.option(
        "-e", "--entity", "entities", multiple=True, metavar="NAME=VALUE", help="A key; again for another row."
    ),
    click.option("-c", "--context", multiple=True, metavar="NAME[:DTYPE]=VALUE", help="What only you know now."),
    click.option("-t", "--tensor", "tensors", multiple=True, metavar="NAME[:DTYPE]=JSON", help="One row of an input."),
    click.option("--rows", metavar="FILE", help='JSON {"entities": {"name": [...]}, "context": {...}}; - for stdin.'),
)


def row_options(run: FunctionT) -> FunctionT:
    """The options that hold rows; `rows_from_options` parses them."""
    for option in reversed(_ROW_OPTIONS):
        run = option(run)
    return run


@command(on_mesh=True)
@click.argument("deployment")
@row_options
@click.option("-o", "--output", "outputs", multiple=True, metavar="NAME", help="Only this output; may be repeated.")
@click.option("--features", "with_features", is_flag=True, help="Also the feature values used, with status and age.")
@click.option("--sticky-key", default="", help="Requests with equal keys go to the same version.")
@click.option("--pin", type=click.IntRange(1), metavar="VERSION", help="Ask this version of the deployment.")
async def predict(
    session: Session,
    deployment: str,
    entities: tuple[str, ...],
    context: tuple[str, ...],
    tensors: tuple[str, ...],
    rows: str | None,
    outputs: tuple[str, ...],
    with_features: bool,
    sticky_key: str,
    pin: int | None,
) -> None:
    """Ask a deployment.

    treadle predict flight-delay -e tail_number=N14228 -c distance=1400
    """
    async with session.client() as client:
        given = rows_from_options(entities, context, tensors, rows)
        if given.get("tensors"):
            answer = await client.predict_tensors(
                deployment, given["tensors"], outputs=outputs, sticky_key=sticky_key, pin_version=pin
            )
        else:
            answer = await client.predict(
                deployment,
                given.get("entities"),
                given.get("context"),
                outputs=outputs,
                return_features=with_features,
                sticky_key=sticky_key,
                pin_version=pin,
            )
    from treadle.cli.ui.to_jsonable import to_jsonable

    session.out.show(to_jsonable(answer), lambda: _picture(answer))


def rows_from_options(
    entities: tuple[str, ...], context: tuple[str, ...], tensors: tuple[str, ...], rows: str | None
) -> Mapping[str, Mapping[str, Any]]:
    """Columns by name under "entities", "context", "tensors", from options or a file. UsageError without any."""
    from treadle.cli.ui.row_input import columns_from_options, read_rows

    typed = {
        part: columns_from_options(cells, part)
        for part, cells in (("entities", entities), ("context", context), ("tensors", tensors))
    }
    given: Mapping[str, Mapping[str, Any]] = {key: columns for key, columns in typed.items() if columns}
    if rows is not None:
        if given:
            raise click.UsageError("--rows stands in place of -e, -c and -t")
        given = read_rows(rows)
    if not given:
        raise click.UsageError("say for what: -e NAME=VALUE, -t NAME=JSON, or --rows FILE")
    if "tensors" in given and len(given) > 1:
        raise click.UsageError("tensors are the model's own inputs: give them without entities and context")
    return given


def _picture(answer: "Prediction") -> Any:
    from rich.console import Group

    from treadle.cli.ui.output import facts, table
    from treadle.cli.ui.to_jsonable import to_jsonable

    names = list(answer.outputs)
    columns = [map(_cell, to_jsonable(answer.outputs[name])) for name in names]
    rows = list(zip(answer.prediction_ids, *columns, strict=True))
    about = facts(
        (
            ("by", f"{answer.model}/{answer.version}" if answer.version else "a default answer"),
            ("served by", answer.served_by),
            ("degraded", answer.degraded_reason),
            ("features", _provenance(answer.provenance) if answer.provenance else ""),
            ("trace", answer.trace_id and f"treadle trace {answer.trace_id}"),
        )
    )
    parts: list[Any] = [table(["prediction id", *(f">{name}" for name in names)], rows), about]
    if answer.features:
        parts.append(_features(list(answer.features.values())))
    return Group(*parts)


def _provenance(found: "FeatureProvenance") -> str:
    oldest = "no values" if isnan(found.oldest_age_seconds) else f"oldest {found.oldest_age_seconds:,.0f} s"
    named = [("stale", found.stale), ("missing", found.missing), ("null", found.null)]
    return "; ".join([oldest, *[f"{what}: {', '.join(names)}" for what, names in named if names]])


def _features(features: "list[Feature]") -> Any:
    """The first row's features: a picture for people, not all the data."""
    from treadle.cli.ui.output import table
    from treadle.cli.ui.to_jsonable import to_jsonable

    rows = []
    for feature in features:
        age = to_jsonable(feature.ages_seconds)[0] if len(feature.ages_seconds) else None
        value = to_jsonable(feature.values)[0] if feature.values is not None and len(feature.values) else ""
        status = feature.statuses[0] if feature.statuses else ""
        rows.append([feature.name, status, "" if age is None else f"{age:,.0f} s", _cell(value)])
    return table(["feature (first row)", "status", ">age", ">value"], rows)


def _cell(value: Any) -> str:
    if isinstance(value, list):
        return "[" + ", ".join(_cell(each) for each in value) + "]"
    return f"{value:.6g}" if isinstance(value, float) else "" if value is None else str(value)
