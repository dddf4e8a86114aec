"""`treadle features apply|materialize|get|freshness`."""

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from treadle.cli.command import Session, command

if TYPE_CHECKING:
    from treadle.client import AsyncClient, Feature
    from treadle.features.definitions import FeatureView
    from treadle.jobs.materialize import MaterializationResult


@click.group()
def features() -> None:
    """Define, fill and read features."""


@command(on_mesh=True)
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--dry-run", is_flag=True, help="Say what would change, and change nothing.")
async def apply(session: Session, file: Path, dry_run: bool) -> None:
    """Create or change the views and feature services that FILE (Python) defines: all or none."""
    from treadle.cli.ui.output import table
    from treadle.cli.ui.to_jsonable import to_jsonable
    from treadle.features import definition_codec as codec
    from treadle.features.loading import load_definitions

    found = load_definitions(file)
    async with session.client() as client:
        changes = await client.apply_features(
            [codec.view_to_proto(view) for view in found.views],
            [codec.service_to_proto(service) for service in found.services],
            dry_run=dry_run,
        )
    data = {"dry_run": dry_run, "changes": to_jsonable(changes)}
    rows = [
        (each["object"], each["name"], each["kind"].lower(), "; ".join(each["differences"])) for each in data["changes"]
    ]
    columns = ("", "name", "would be" if dry_run else "is", "differences")
    session.out.show(data, lambda: table(columns, rows))


@command(on_mesh=True)
@click.argument("views", nargs=-1)
@click.option("--until", type=click.DateTime(), metavar="TIME", help="Only what was known by then (UTC).")
async def materialize(session: Session, views: tuple[str, ...], until: datetime | None) -> None:
    """Fill the online store from history: the newest row of each entity.

    All views that have a source, or only VIEWS. Running it again changes nothing.
    """
    from treadle.cli.ui.output import table
    from treadle.cli.ui.to_jsonable import to_jsonable

    moment = None if until is None else until.replace(tzinfo=UTC)
    async with session.client() as client:
        chosen = await _views(client, views)
        done: dict[str, MaterializationResult] = {}
        for view in chosen:
            done[view.name] = await _materialize(session, client, view, moment)
    rows = [(name, f"{each.rows:,}", f"{each.written:,}", f"{each.outdated:,}") for name, each in done.items()]
    columns = ("view", ">rows", ">written", ">outdated")
    session.out.show({"views": to_jsonable(done)}, lambda: table(columns, rows))


@command(on_mesh=True)
@click.argument("feature_service")
@click.option("-e", "--entity", "entities", multiple=True, metavar="NAME=VALUE", help="A key; again for another row.")
@click.option("-c", "--context", multiple=True, metavar="NAME[:DTYPE]=VALUE", help="Request-time columns.")
@click.option("-o", "--output", "outputs", multiple=True, metavar="NAME", help="Only this feature; may be repeated.")
async def get(
    session: Session,
    feature_service: str,
    entities: tuple[str, ...],
    context: tuple[str, ...],
    outputs: tuple[str, ...],
) -> None:
    """Look up features of entities, with the status and age of each."""
    if not entities and not context:
        raise click.UsageError("say for what: -e NAME=VALUE")
    from treadle.cli.ui.row_input import columns_from_options
    from treadle.cli.ui.to_jsonable import to_jsonable

    async with session.client() as client:
        keys, asked = columns_from_options(entities, "entities"), columns_from_options(context, "context")
        found = await client.get_features(feature_service, keys, asked, outputs=outputs)
    session.out.show(to_jsonable(found), lambda: _picture(list(found.values())))


@command(on_mesh=True)
@click.argument("views", nargs=-1)
async def freshness(session: Session, views: tuple[str, ...]) -> None:
    """Show how old the newest value of each view is.

    Exit status 1 if one is older than its limit.
    """
    from treadle.cli.command import FAILED
    from treadle.cli.ui.output import table
    from treadle.cli.ui.to_jsonable import time_text, to_jsonable

    async with session.client() as client:
        found = await client.freshness(*views)
    rows = [
        (
            each.view,
            f"{each.entities:,}",
            time_text(each.newest_event_micros),
            f"{each.age_seconds:,.0f} s" if each.entities else "",
            f"{each.freshness_seconds:,.0f} s" if each.freshness_seconds else "never stale",
            "fresh" if each.fresh else "empty" if not each.entities else "stale",
        )
        for each in found
    ]
    columns = ("view", ">entities", "newest", ">age", ">limit", "")
    session.out.show(to_jsonable(found), lambda: table(columns, rows))
    if not all(each.fresh for each in found):
        raise SystemExit(FAILED)


for each in (apply, materialize, get, freshness):
    features.add_command(each)


async def _views(client: "AsyncClient", names: tuple[str, ...]) -> "list[FeatureView]":
    """The named views, or all that have a history."""
    from treadle.core.errors import NotFound
    from treadle.features import definition_codec as codec

    known = {view.name: view for view in await client.feature_views()}
    for name in names:
        if name not in known:
            raise NotFound(f"no feature view {name!r}; there are: {', '.join(sorted(known)) or 'none'}")
    chosen = [known[name] for name in names] if names else [view for view in known.values() if view.source.path]
    return [codec.view_from_proto(view) for view in chosen]


async def _materialize(
    session: Session, client: "AsyncClient", view: "FeatureView", until: datetime | None
) -> "MaterializationResult":
    from treadle.jobs.materialize import materialize as run
    from treadle.v1 import features_pb2_grpc

    stub = features_pb2_grpc.FeatureServiceStub(client.channel)
    with session.out.progress(view.name) as tell:
        return await run(view, stub, until=until, progress=lambda done, total: tell("", done, total))


def _picture(found: "list[Feature]") -> Any:
    from treadle.cli.ui.output import table
    from treadle.cli.ui.to_jsonable import to_jsonable

    rows = []
    for feature in found:
        values = to_jsonable(feature.values) if feature.values is not None else [""] * len(feature.statuses)
        for row, (status, age) in enumerate(zip(feature.statuses, to_jsonable(feature.ages_seconds), strict=True)):
            value = "" if feature.nulls[row] else values[row]
            rows.append((feature.name, row, value, status, "" if age is None else f"{age:,.0f} s"))
    return table(("feature", ">row", ">value", "status", ">age"), rows)
