"""Human-readable differences between two versions of a definition."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass
from datetime import timedelta
from enum import IntEnum
from typing import Any


class ChangeKind(IntEnum):
    """Numbered as `treadle.v1.FeatureChange.Kind`."""

    CREATED = 1
    UPDATED = 2
    UNCHANGED = 3


@dataclass(frozen=True)
class DefinitionChange:
    """The effect of an apply (or of its dry run) on one view or feature service."""

    object: str
    """ "view" or "service"."""
    name: str
    kind: ChangeKind
    differences: tuple[str, ...] = ()


def diff(what: str, name: str, before: Any | None, after: Any) -> DefinitionChange:
    """The change from `before` (None: the object is new) to `after`; `what` is "view" or "service"."""
    if before is None:
        return DefinitionChange(what, name, ChangeKind.CREATED)
    if before == after:
        return DefinitionChange(what, name, ChangeKind.UNCHANGED)
    return DefinitionChange(what, name, ChangeKind.UPDATED, tuple(_differences("", before, after)))


def _differences(path: str, before: Any, after: Any) -> Iterator[str]:
    if before == after:
        return
    if is_dataclass(before) and type(before) is type(after):
        for each in fields(before):
            if each.compare:
                name = f"{path}.{each.name}" if path else each.name
                yield from _differences(name, getattr(before, each.name), getattr(after, each.name))
    elif isinstance(before, tuple) and isinstance(after, tuple):
        yield from _sequence_differences(path, before, after)
    else:
        yield f"{_format_path(path)}: {_format_value(before)} -> {_format_value(after)}"


def _sequence_differences(path: str, before: Sequence[Any], after: Sequence[Any]) -> Iterator[str]:
    old, new = {_item_label(each): each for each in before}, {_item_label(each): each for each in after}
    for label in old:
        if label not in new:
            yield f"{path}.{label}: removed"
    for label, each in new.items():
        if label not in old:
            yield f"{path}.{label}: added"
        else:
            yield from _differences(f"{path}.{label}", old[label], each)
    kept = [label for label in new if label in old]
    if [label for label in old if label in new] != kept:
        yield f"{path}: order -> {', '.join(kept)}"


def _item_label(item: Any) -> str:
    return str(getattr(item, "name", None) or getattr(item, "view", None) or item)


def _format_path(path: str) -> str:
    return "freshness_seconds" if path == "freshness" else path


def _format_value(value: Any) -> str:
    if isinstance(value, timedelta):
        return f"{value.total_seconds():g}"
    if is_dataclass(value):
        return ", ".join(f"{each.name} {getattr(value, each.name)}" for each in fields(value))
    text = str(value)
    return "none" if value is None or value == "" else f"{text[:12]}…" if len(text) == 64 else text
