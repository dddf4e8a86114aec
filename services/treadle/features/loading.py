"""Reads the definitions in a user's Python file."""

from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from treadle.core.errors import InvalidInput
from treadle.features.definitions import Definitions, FeatureService, FeatureView, Source
from treadle.features.lookup_plan import compile_plan
from treadle.features.source import import_file


def load_definitions(path: str | Path) -> Definitions:
    """The views and feature services that a module file holds at its top level, checked against each other.

    The file is run under its own name with its folder on `sys.path`, so that transforms get the names by which the
    serving process imports them. Relative source paths become absolute, from the file's folder.
    InvalidInput names what is wrong.
    """
    module = import_file(Path(path))
    values = list(vars(module).values())
    views = _distinct([each for each in values if isinstance(each, FeatureView)])
    services = _distinct([each for each in values if isinstance(each, FeatureService)])
    if not views and not services:
        raise InvalidInput(f"{path} defines no FeatureView and no FeatureService at its top level")
    folder = Path(path).resolve().parent
    found = Definitions(tuple(_anchored(each, folder) for each in views), tuple(services))
    by_name = {view.name: view for view in found.views}
    for service in found.services:
        compile_plan(service, by_name)
    return found


_T = TypeVar("_T", FeatureView, FeatureService)


def _distinct(found: list[_T]) -> list[_T]:
    """One of each object: a module may give it two names."""
    return list({id(each): each for each in found}.values())


def _anchored(view: FeatureView, folder: Path) -> FeatureView:
    source = view.source
    if source is None or "://" in source.path or Path(source.path).is_absolute():
        return view
    return replace(view, source=Source(str(folder / source.path), source.timestamp_column))
