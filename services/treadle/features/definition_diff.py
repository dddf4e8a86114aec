"""What is different between two definitions, in words for people."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass
from datetime import timedelta
from enum import IntEnum
from typing import Any


class Kind(IntEnum):
    """Numbered as `treadle.v1.FeatureChange.Kind`."""

    CREATED = 1
    UPDATED = 2
    UNCHANGED = 3


@dataclass(frozen=True)
class Change:
    """What applying does, or would do, to one view or feature service."""

    object: str
    """ "view" or "service"."""
    name: str
    kind: Kind
    differences: tuple[str, ...] = ()


def change(what: str, name: str, before: Any | None, after: Any) -> Change:
    """The change from `before` (None: there was none) to `after`."""
    if before is None:
        return Change(what, name, Kind.CREATED)
    if before == after:
        return Change(what, name, Kind.UNCHANGED)
    return Change(what, name, Kind.UPDATED, tuple(_differences("", before, after)))


def _differences(path: str, before: Any, after: Any) -> Iterator[str]:
    if before == after:
        return
    if is_dataclass(before) and type(before) is type(after):
        for each in fields(before):
            if each.compare:
                name = f"{path}.{each.name}" if path else each.name
                yield from _differences(name, getattr(before, each.name), getattr(after, each.name))
    elif isinstance(before, tuple) and isinstance(after, tuple):
        yield from _sequence(path, before, after)
    else:
        yield f"{_say_path(path)}: {_say(before)} -> {_say(after)}"


def _sequence(path: str, before: Sequence[Any], after: Sequence[Any]) -> Iterator[str]:
    old, new = {_label(each): each for each in before}, {_label(each): each for each in after}
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


def _label(item: Any) -> str:
    return str(getattr(item, "name", None) or getattr(item, "view", None) or item)


def _say_path(path: str) -> str:
    return "freshness_seconds" if path == "freshness" else path


def _say(value: Any) -> str:
    if isinstance(value, timedelta):
        return f"{value.total_seconds():g}"
    if is_dataclass(value):
        return ", ".join(f"{each.name} {getattr(value, each.name)}" for each in fields(value))
    text = str(value)
    return "none" if value is None or value == "" else f"{text[:12]}…" if len(text) == 64 else text
