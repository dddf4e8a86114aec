"""`treadle history`: the changes of a mesh, with their authors and reasons."""

import click

from treadle.cli.command import Session, command


@command(on_mesh=True)
@click.argument("subject", default="")
@click.option("--limit", type=click.IntRange(1, 10_000), default=30, show_default=True)
async def history(session: Session, subject: str, limit: int) -> None:
    """Show what changed, who did it, and why.

    SUBJECT is a beginning: flight-delay, flight-delay/3, deployment:flight-delay. Without it, everything; newest first.
    """
    from treadle.cli.ui.output import table
    from treadle.cli.ui.to_jsonable import time_text, to_jsonable

    async with session.client() as client:
        events = await client.history(subject, limit=limit)
    rows = [
        (each.sequence, time_text(each.at_micros), each.actor, each.action, each.subject, each.reason)
        for each in events
    ]
    columns = (">#", "when", "who", "what", "to", "why")
    session.out.show(to_jsonable(events), lambda: table(columns, rows))
