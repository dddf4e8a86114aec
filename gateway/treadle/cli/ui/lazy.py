"""Command groups with names and one-line help of their commands, which are imported only when they run.

So `treadle --help` imports only click. A test compares each line with the docstring of the command.
"""

from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

import click

Section = tuple[str, Mapping[str, tuple[str, str]]]
"""A heading, and under it: name of the command -> ("module:attribute", one-line help)."""


class LazyGroup(click.Group):
    """A group made of sections of commands that are not imported yet."""

    def __init__(self, *args: Any, sections: Sequence[Section], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.sections = sections
        self._targets = {name: target for _, found in sections for name, (target, _) in found.items()}

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names of the commands in the order of the sections."""
        return list(self._targets)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The named command, imported now; None for an unknown name."""
        if cmd_name not in self._targets:
            return None
        module, _, attribute = self._targets[cmd_name].partition(":")
        found = getattr(import_module(module), attribute)
        if not isinstance(found, click.Command):
            raise TypeError(f"{module}:{attribute} is no command")
        return found

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Writes the sections with the one-line help of each command."""
        for heading, found in self.sections:
            with formatter.section(heading):
                formatter.write_dl([(name, text) for name, (_, text) in found.items()])
