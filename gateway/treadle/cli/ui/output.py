"""`Output`: the results, notes and errors of all commands.

Without `--json`, tables go to stdout and progress to stderr. With `--json`, stdout has only JSON: one document, or one
a line for a command that keeps running. rich is imported only to draw tables and progress bars.
"""

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from treadle.mesh.errors import CommandError

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table

# The width of tables in a pipe, which has no width: nothing is cut.
_PIPE_WIDTH = 240


class Output:
    """Writes the results, notes and errors of a command."""

    def __init__(self, as_json: bool = False) -> None:
        self.as_json = as_json

    def show(self, data: Any, view: "Callable[[], RenderableType]") -> None:
        """Writes the result: `data` as JSON, or the view for people."""
        if self.as_json:
            print_json(data)
        else:
            drawn = view()
            if isinstance(drawn, str):  # unchanged: brackets in text are no markup
                sys.stdout.write(f"{drawn}\n")
            else:
                console().print(drawn)

    def event(self, data: Any, text: str) -> None:
        """Writes an event of a command that keeps running: a JSON line on stdout, or a line on stderr."""
        if self.as_json:
            print_json(data, indent=None)
        else:
            self.note(text)

    def note(self, text: str) -> None:
        """Writes a line to stderr."""
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()

    def fail(self, error: CommandError) -> None:
        """Writes an error with its hint to stderr, and with --json also as a document to stdout."""
        if self.as_json:
            print_json(error.as_json())
        self.note(f"error: {error.message}")
        for each in error.violations:
            if each["description"] not in error.message:
                self.note(f"  {each['field']}: {each['description']}")
        if error.hint:
            self.note(f"  → {error.hint}")

    @contextmanager
    def progress(self, what: str) -> "Iterator[Callable[[str, float, float], None]]":
        """A progress bar on stderr, unless in a pipe. Yields the function that updates it: (stage, done, total)."""
        if not sys.stderr.isatty():
            yield lambda _stage, _done, _total: None
            return
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

        columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
        with Progress(*columns, console=console(stderr=True), transient=True) as bar:
            task = bar.add_task(what, total=None)

            def update(stage: str, done: float, total: float) -> None:
                bar.update(task, description=f"{what} {stage}".strip(), completed=done, total=total or None)

            yield update


def print_json(data: Any, indent: int | None = 2) -> None:
    """Writes one JSON document to stdout. ValueError for NaN and infinity, which JSON does not have."""
    sys.stdout.write(json.dumps(data, indent=indent, ensure_ascii=False, allow_nan=False) + "\n")
    sys.stdout.flush()


def console(stderr: bool = False) -> "Console":
    """A rich console; in a pipe it is wide enough to cut nothing."""
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    return Console(file=stream, width=None if stream.isatty() else _PIPE_WIDTH, highlight=False)


def table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> "Table":
    """A table. Columns whose name begins with ">" are right-aligned. Cells are literal text without markup."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    drawn = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        right = column.startswith(">")
        drawn.add_column(column.removeprefix(">"), justify="right" if right else "left", overflow="fold")
    for row in rows:
        drawn.add_row(*(Text(str(cell)) for cell in row))
    return drawn


def facts(pairs: Sequence[tuple[str, Any]]) -> "Table":
    """A table of names and values; pairs without a value are left out."""
    from rich.table import Table
    from rich.text import Text

    drawn = Table(box=None, show_header=False, pad_edge=False)
    drawn.add_column(style="bold")
    drawn.add_column(overflow="fold")
    for name, value in pairs:
        if value not in ("", None, (), []):
            drawn.add_row(name, Text(str(value)))
    return drawn
