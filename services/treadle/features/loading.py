"""Loading of definitions from a user's Python file."""

from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from treadle.core.errors import InvalidInput
from treadle.features.definitions import Definitions, FeatureService, FeatureView, Source
from treadle.features.lookup_plan import compile_plan
from treadle.features.source import import_file


def load_definitions(path: str | Path) -> Definitions:
    """The views and feature services at the top level of a module file, checked against each other.

    The file is executed under its own module name with its folder on `sys.path`, so that transforms get the names by
    which the serving process imports them. Relative source paths become absolute, from the file's folder.
    InvalidInput names the invalid object.
    """
    module = import_file(Path(path))
    values = list(vars(module).values())
    views = _distinct([each for each in values if isinstance(each, FeatureView)])
    services = _distinct([each for each in values if isinstance(each, FeatureService)])
    if not views and not services:
        raise InvalidInput(f"{path} defines no FeatureView and no FeatureService at its top level")
    folder = Path(path).resolve().parent
    found = Definitions(tuple(_with_absolute_source(each, folder) for each in views), tuple(services))
    by_name = {view.name: view for view in found.views}
    for service in found.services:
        compile_plan(service, by_name)
    return found


_T = TypeVar("_T", FeatureView, FeatureService)


def _distinct(found: list[_T]) -> list[_T]:
    """Each object once: a module may bind it to two names."""
    return list({id(each): each for each in found}.values())


def _with_absolute_source(view: FeatureView, folder: Path) -> FeatureView:
    source = view.source
    if source is None or "://" in source.path or Path(source.path).is_absolute():
        return view
    return replace(view, source=Source(str(folder / source.path), source.timestamp_column))
