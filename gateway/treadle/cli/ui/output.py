"""The one seam through which commands speak.

People get tables on stdout and progress on stderr. With `--json`, stdout holds JSON and nothing else: one document,
or one a line from a command that goes on. rich is imported only when something is drawn.
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

# A pipe has no width; nothing is cut there.
_PIPE_WIDTH = 240


class Output:
    """Where a command's results, notes and errors go."""

    def __init__(self, as_json: bool = False) -> None:
        self.as_json = as_json

    def show(self, data: Any, view: "Callable[[], RenderableType]") -> None:
        """The result: `data` for machines, what `view` draws for people."""
        if self.as_json:
            print_json(data)
        else:
            drawn = view()
            if isinstance(drawn, str):  # as it is: brackets in it are no markup
                sys.stdout.write(f"{drawn}\n")
            else:
                console().print(drawn)

    def event(self, data: Any, text: str) -> None:
        """Something that happened while a command goes on: a JSON line on stdout, or a line on stderr."""
        if self.as_json:
            print_json(data, indent=None)
        else:
            self.note(text)

    def note(self, text: str) -> None:
        """A line for people, on stderr."""
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()

    def fail(self, error: CommandError) -> None:
        """What went wrong and what to do: on stderr, and with --json as a document on stdout."""
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
        """A bar on stderr while the block runs; call what it yields with (stage, done, total). Silent in a pipe."""
        if not sys.stderr.isatty():
            yield lambda _stage, _done, _total: None
            return
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

        columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
        with Progress(*columns, console=console(stderr=True), transient=True) as bar:
            task = bar.add_task(what, total=None)

            def tell(stage: str, done: float, total: float) -> None:
                bar.update(task, description=f"{what} {stage}".strip(), completed=done, total=total or None)

            yield tell


def print_json(data: Any, indent: int | None = 2) -> None:
    """Writes one document to stdout. NaN and infinities, which JSON has not, must be gone already."""
    sys.stdout.write(json.dumps(data, indent=indent, ensure_ascii=False, allow_nan=False) + "\n")
    sys.stdout.flush()


def console(stderr: bool = False) -> "Console":
    """A console that cuts nothing in a pipe."""
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    return Console(file=stream, width=None if stream.isatty() else _PIPE_WIDTH, highlight=False)


def table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> "Table":
    """A table; a column whose name begins with ">" is right-aligned. Cells are text, taken literally."""
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
    """Names and values, one pair a line; pairs without value are left out."""
    from rich.table import Table
    from rich.text import Text

    drawn = Table(box=None, show_header=False, pad_edge=False)
    drawn.add_column(style="bold")
    drawn.add_column(overflow="fold")
    for name, value in pairs:
        if value not in ("", None, (), []):
            drawn.add_row(name, Text(str(value)))
    return drawn
