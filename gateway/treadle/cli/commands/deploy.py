"""`treadle deploy|promote|rollback`: the traffic policy of a deployment."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from treadle.cli.command import Session, command

if TYPE_CHECKING:
    from treadle.client import AsyncClient
    from treadle.v1 import registry_pb2

_wait_option = click.option(
    "--wait/--no-wait", default=True, show_default=True, help="Until its versions are loaded; fallbacks answer before."
)


@command(on_mesh=True)
@click.argument("name_or_file", metavar="NAME|FILE.toml")
@click.option("--traffic", multiple=True, metavar="MODEL/VERSION=PERCENT", help="A share; all sum to 100.")
@click.option("--fallback", multiple=True, metavar="NAME=MODEL/VERSION|JSON", help="A step of the chain, in order.")
@click.option("--shadow", multiple=True, metavar="MODEL/VERSION", help="Gets a copy of the traffic; answers nobody.")
@click.option("--sticky", metavar="ENTITY", help="Entity whose value keeps a caller on one version.")
@click.option("--request-timeout", type=float, metavar="SECONDS", help="For requests without a deadline.")
@click.option("--feature-timeout", type=float, metavar="SECONDS", help="How much of it features may take.")
@click.option("--strict-features", is_flag=True, default=None, help="A stale feature counts as missing.")
@click.option("--description", help="For people.")
@click.option("--reason", default="", help="Why, for the history.")
@click.option("--expected-revision", type=int, default=0, help="Refuse if it changed since; -1: if it exists.")
@_wait_option
async def deploy(
    session: Session,
    name_or_file: str,
    traffic: tuple[str, ...],
    fallback: tuple[str, ...],
    shadow: tuple[str, ...],
    sticky: str | None,
    request_timeout: float | None,
    feature_timeout: float | None,
    strict_features: bool | None,
    description: str | None,
    reason: str,
    expected_revision: int,
    wait: bool,
) -> None:
    """Say which versions serve.

    By flags, by a TOML file, or both: flags win.

    \b
    treadle deploy flight-delay --traffic flight-delay/2=90 --traffic flight-delay/3=10
                                --fallback rule=on-time-rule/1 --fallback 'guess={"probability": 0.2}'

    \b
    name = "flight-delay"            # the same as a file
    sticky_entity = "tail_number"
    [traffic]
    "flight-delay/2" = 90
    "flight-delay/3" = 10
    [[fallback]]
    name = "rule"
    version = "on-time-rule/1"
    """
    from treadle.cli.deployfile import DeployPlan, parse_fallback, parse_traffic, read_plan

    plan = read_plan(Path(name_or_file)) if name_or_file.endswith(".toml") else DeployPlan(name_or_file)
    plan = plan.with_flags(
        traffic=dict(parse_traffic(share) for share in traffic),
        fallbacks=tuple(parse_fallback(step) for step in fallback),
        shadows=shadow,
        sticky_entity=sticky,
        timeout_seconds=request_timeout,
        feature_timeout_seconds=feature_timeout,
        strict_features=strict_features,
        description=description,
    )
    if not plan.traffic:
        raise click.UsageError("say which versions serve: --traffic MODEL/VERSION=PERCENT, or [traffic] in the file")
    async with session.client() as client:
        made = await client.deploy(**vars(plan), reason=reason, expected_revision=expected_revision)
        await _settle(session, client, made, wait)


@command(on_mesh=True)
@click.argument("deployment")
@click.argument("version")
@click.option("--reason", default="", help="Why, for the history.")
@_wait_option
async def promote(session: Session, deployment: str, version: str, reason: str, wait: bool) -> None:
    """Send all traffic of a deployment to one version.

    VERSION is MODEL/3 or MODEL@alias. Fallbacks and all else stay as they are.
    """
    async with session.client() as client:
        made = await client.promote(deployment, version, reason=reason)
        await _settle(session, client, made, wait)


@command(on_mesh=True)
@click.argument("deployment")
@click.option("--to", "revision", type=click.IntRange(1), help="That revision; the one before without it.")
@click.option("--reason", default="", help="Why, for the history.")
@_wait_option
async def rollback(session: Session, deployment: str, revision: int | None, reason: str, wait: bool) -> None:
    """Make a deployment what it was before.

    The old state becomes a new revision: nothing is lost. A rollback after a rollback goes further back; --to REVISION
    goes anywhere, also to the revision that was left.
    """
    async with session.client() as client:
        made = await client.rollback(deployment, to_revision=revision or 0, reason=reason)
        await _settle(session, client, made, wait)


async def _settle(session: Session, client: "AsyncClient", made: "registry_pb2.Deployment", wait: bool) -> None:
    """Shows the deployment after its versions are loaded; until then its fallbacks answer."""
    from treadle.cli.ui.to_jsonable import to_jsonable

    if wait:
        with session.out.progress("loading"):
            await client.wait_until_ready(made.name)
    session.out.show(to_jsonable(made), lambda: _picture(made))


def _picture(made: "registry_pb2.Deployment") -> Any:
    from treadle.cli.ui.output import facts
    from treadle.client.references import format_ref

    fallbacks = ", ".join(f"{step.name} ({format_ref(step.ref) or 'constant'})" for step in made.fallbacks)
    return facts(
        (
            ("deployment", f"{made.name}, revision {made.revision}"),
            ("restored", f"revision {made.restored_revision}" if made.restored_revision else ""),
            ("traffic", ", ".join(f"{format_ref(share.ref)} {share.weight:g} %" for share in made.traffic)),
            ("fallbacks", fallbacks),
            ("shadows", ", ".join(format_ref(ref) for ref in made.shadows)),
            ("sticky by", made.sticky_entity),
            ("timeout", f"{made.timeout_seconds:g} s" if made.timeout_seconds else ""),
            ("by", made.updated_by),
        )
    )
