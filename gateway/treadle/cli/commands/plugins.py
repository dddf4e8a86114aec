"""`treadle plugins list|check|new`."""

import asyncio
from pathlib import Path

import click

from treadle.cli.command import FAILED, Session, command

_MARKS = {"passed": "✓", "failed": "✗", "skipped": "–"}


@click.group()
def plugins() -> None:
    """See, check and begin plugins."""


@command("list")
async def list_(session: Session) -> None:
    """List the installed plugins: what each provides, and whether it works."""
    from treadle.cli.ui.output import table
    from treadle.cli.ui.to_jsonable import to_jsonable
    from treadle.plugins.manager import Plugins

    found = Plugins.load().info()
    rows = [
        (each.name, each.state, ", ".join(each.provides), f"{each.distribution} {each.version}", each.reason)
        for each in found
    ]
    columns = ("plugin", "state", "provides", "from", "what to do")
    session.out.show(to_jsonable(found), lambda: table(columns, rows))


@command()
@click.argument("name")
async def check(session: Session, name: str) -> None:
    """Run the conformance kit on an installed plugin.

    Exit status 1 if a test fails.
    """
    from treadle.cli.ui.output import table
    from treadle.cli.ui.to_jsonable import to_jsonable
    from treadle.plugins.authoring.check import check_plugin

    with session.out.progress(f"checking {name}"):
        results = await asyncio.to_thread(check_plugin, name)
    passed = all(each.outcome != "failed" for each in results)
    rows = [(_MARKS[each.outcome], each.subject, each.test, each.message) for each in results]
    data = {"plugin": name, "passed": passed, "results": to_jsonable(results)}
    session.out.show(data, lambda: table(("", "what", "test", "why not"), rows))
    if not passed:
        raise SystemExit(FAILED)


@command()
@click.argument("name")
@click.option("--folder", type=click.Path(path_type=Path), help="Where; ./treadle-NAME without it.")
async def new(session: Session, name: str, folder: Path | None) -> None:
    """Begin a plugin: a project with a backend that works and tests that pass."""
    from treadle.plugins.authoring.new import new_plugin

    where = folder or Path(f"treadle-{name}")
    written = [str(path) for path in new_plugin(name, where)]
    data = {"name": name, "folder": str(where), "files": written}
    text = "\n".join([*written, "", f"next: cd {where} && pip install -e . pytest && pytest"])
    session.out.show(data, lambda: text)


for each in (list_, check, new):
    plugins.add_command(each)
