"""The command's face: its help, and how little it takes to show it."""

from collections.abc import Iterator
from importlib.metadata import version

import click
import pytest
from click.testing import CliRunner

from treadle.cli.command import Command
from treadle.cli.main import SECTIONS, main
from treadle.cli.ui.lazy import LazyGroup

from ..conftest import modules_after

HEAVY = {"grpc", "numpy", "rich", "google.protobuf", "asyncio", "treadle.core.errors", "opentelemetry", "pyarrow"}


def walk(group: click.Group, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    context = click.Context(group)
    for name in group.list_commands(context):
        found = group.get_command(context, name)
        assert found is not None
        if isinstance(found, click.Group):
            yield from walk(found, (*path, name))
        else:
            yield (*path, name), found


ALL = dict(walk(main))


def imported_by(*arguments: str) -> set[str]:
    """The modules that a fresh process has imported after running the command."""
    program = f"from treadle.cli.main import main\ntry:\n    main({list(arguments)!r})\nexcept SystemExit:\n    pass\n"
    return modules_after(program)


def test_help_imports_nothing_heavy() -> None:
    assert not imported_by("--help") & HEAVY


@pytest.mark.parametrize("arguments", [("model", "--help"), ("deploy", "--help"), ("features", "get", "--help")])
def test_help_of_commands_imports_no_grpc(arguments: tuple[str, ...]) -> None:
    assert not imported_by(*arguments) & (HEAVY - {"asyncio"})


def test_supervisor_and_status_import_no_grpc() -> None:
    loaded = modules_after("import treadle.cli.commands.up, treadle.cli.commands.status")
    assert not loaded & (HEAVY - {"asyncio"})


def test_one_line_helps_equal_the_docstrings_of_the_commands() -> None:
    for _, commands in SECTIONS:
        for name, (_, line) in commands.items():
            found = main.get_command(click.Context(main), name)
            assert found is not None
            assert (found.help or "").split("\n\n")[0].replace("\n", " ") == line


def test_help_shows_every_section_and_command() -> None:
    assert isinstance(main, LazyGroup)
    shown = CliRunner().invoke(main, ["--help"]).output
    for heading, commands in SECTIONS:
        assert f"{heading}:" in shown
        assert all(f"  {name}" in shown for name in commands)


@pytest.mark.parametrize("path", ALL, ids=" ".join)
def test_every_command_takes_json_and_has_help(path: tuple[str, ...]) -> None:
    assert isinstance(ALL[path], Command)
    shown = CliRunner().invoke(main, [*path, "--help"])
    assert shown.exit_code == 0
    assert "--json" in shown.output
    assert ALL[path].help


@pytest.mark.parametrize("arguments", [["nonsense"], ["model", "nonsense"], ["up", "--nonsense"], ["predict"]])
def test_wrong_usage_is_two(arguments: list[str]) -> None:
    assert CliRunner().invoke(main, arguments).exit_code == 2


def test_version() -> None:
    assert CliRunner().invoke(main, ["--version"], prog_name="treadle").output == f"treadle {version('treadle')}\n"
