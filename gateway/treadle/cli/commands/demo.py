"""`treadle demo`: runs the demo of examples/flights."""

import asyncio
import importlib.util
import inspect
import sys
from pathlib import Path
from types import ModuleType

import click

from treadle.cli.command import Session, command
from treadle.mesh.errors import CommandError

_DEMO = Path("examples/flights/demo.py")


@command()
@click.option("--exit", "exit_after", is_flag=True, help="End the mesh after the story; status 0 if all checks held.")
def demo(session: Session, exit_after: bool) -> None:
    """Tell the whole story on real flights.

    Run it in a clone of Treadle's repository: the demo is an example there, not a part of the package.
    """
    path = _find(Path.cwd())
    if path is None:
        raise CommandError(
            f"there is no {_DEMO} here or above",
            "the demo lies in Treadle's repository: clone it, then type `make demo` there",
            "NOT_FOUND",
        )
    main = getattr(_load(path), "main", None)
    if main is None:
        raise CommandError(f"{path} has no function main", "restore it: git checkout examples/flights")
    result = main(exit_after)
    status = asyncio.run(result) if inspect.iscoroutine(result) else result
    if session.out.as_json:
        session.out.show({"exit_status": int(status or 0)}, str)
    raise SystemExit(int(status or 0))


def _find(folder: Path) -> Path | None:
    for each in (folder, *folder.parents):
        if (each / _DEMO).is_file():
            return each / _DEMO
    return None


def _load(path: Path) -> ModuleType:
    """The module of the demo, imported with its folder first on the import path, as for a script."""
    sys.path.insert(0, str(path.parent))
    spec = importlib.util.spec_from_file_location("demo", path)
    if spec is None or spec.loader is None:
        raise CommandError(f"{path} is no Python module")
    module = importlib.util.module_from_spec(spec)
    sys.modules["demo"] = module
    spec.loader.exec_module(module)
    return module
