"""How the demo speaks: chapters, checks that hold or not, progress."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Table


def _console() -> Console:
    return Console(highlight=False, width=None if sys.stdout.isatty() else 120)


@dataclass
class Story:
    """What is told, and whether each check of it held."""

    console: Console = field(default_factory=_console)
    checks: list[tuple[str, bool]] = field(default_factory=list)
    started: float = field(default_factory=time.monotonic)

    def chapter(self, number: int, title: str) -> None:
        seconds = time.monotonic() - self.started
        self.console.print(f"\n[bold cyan]{number}. {title}[/]  [dim]{seconds:.0f} s[/]")

    def say(self, text: str) -> None:
        self.console.print(f"   {text}")

    def check(self, text: str, held: bool) -> None:
        self.checks.append((text, held))
        self.console.print(f"   [green]✓[/] {text}" if held else f"   [bold red]✗ {text}[/]")

    def show(self, table: Table) -> None:
        self.console.print(table)

    def conclude(self) -> bool:
        """Says which checks held; whether all did."""
        failed = [text for text, held in self.checks if not held]
        seconds = time.monotonic() - self.started
        if failed:
            self.console.print(
                f"\n[bold red]{len(failed)} of {len(self.checks)} checks did not hold[/] ({seconds:.0f} s)"
            )
        else:
            self.console.print(f"\n[bold green]All {len(self.checks)} checks held[/] in {seconds:.0f} s.")
        for text in failed:
            self.console.print(f"   ✗ {text}")
        return not failed

    @contextmanager
    def progress(self, what: str, total: float | None = None) -> Iterator[Any]:
        columns = (TextColumn("   {task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
        with Progress(*columns, console=self.console, transient=True, disable=not self.console.is_terminal) as bar:
            task = bar.add_task(what, total=total)
            yield lambda done: bar.update(task, completed=done)
