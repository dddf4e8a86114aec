"""`treadle doctor`: checks this machine, and says how to fix problems."""

from collections.abc import Iterator
from typing import Any

import click

from treadle.cli.checks import Finding, all_findings
from treadle.cli.command import FAILED, Session, command, home_option
from treadle.mesh.services import BASE_PORT

_MARKS = {"ok": "✓", "note": "–", "problem": "✗"}


@command()
@home_option
@click.option("--base-port", type=click.IntRange(1, 65_000), default=BASE_PORT, show_default=True)
async def doctor(session: Session, base_port: int) -> None:
    """Check this machine, and say what to do about what is wrong.

    Exit status 1 if there is a problem; notes are none.
    """
    findings = [finding async for finding in all_findings(session.home, base_port)]
    healthy = all(finding.level != "problem" for finding in findings)
    data = {"healthy": healthy, "findings": [vars(finding) for finding in findings]}
    session.out.show(data, lambda: _picture(findings))
    if not healthy:
        raise SystemExit(FAILED)


def _picture(findings: list[Finding]) -> Any:
    from treadle.cli.ui.output import table

    return table(("", "what", "found", "what to do"), list(_rows(findings)))


def _rows(findings: list[Finding]) -> Iterator[tuple[str, str, str, str]]:
    for finding in findings:
        yield _MARKS[finding.level], finding.what, finding.found, finding.do
