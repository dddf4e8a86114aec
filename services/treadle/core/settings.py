"""Settings from the environment: typed, frozen, checked at start.

A settings class is a frozen dataclass whose fields all have defaults. `settings_from(Settings, environ, "FEATURES")`
reads TREADLE_FEATURES_MAX_ROWS for its field `max_rows`. A variable with that prefix that is no field is an error.
"""

import dataclasses
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from treadle.core.errors import InvalidInput
from treadle.core.hints import did_you_mean

T = TypeVar("T")

_BOOLS = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}


def settings_from(cls: type[T], environ: Mapping[str, str], prefix: str) -> T:
    """An instance of `cls` with what the environment sets; InvalidInput names the variable that is wrong."""
    start = f"TREADLE_{prefix}_" if prefix else "TREADLE_"
    hints = typing.get_type_hints(cls)
    fields = {start + field.name.upper(): field.name for field in dataclasses.fields(cls)}  # type: ignore[arg-type]  # T is a dataclass
    if prefix:
        _refuse_unknown(environ, start, fields)
    given = {
        name: _parse(variable, environ[variable], hints[name])
        for variable, name in fields.items()
        if variable in environ
    }
    return cls(**given)


def _refuse_unknown(environ: Mapping[str, str], start: str, fields: Mapping[str, str]) -> None:
    for variable in environ:
        if variable.startswith(start) and variable not in fields:
            raise InvalidInput(f"environment: {variable} is no setting{did_you_mean(variable, fields)}")


def _parse(variable: str, text: str, hint: Any) -> Any:
    if typing.get_origin(hint) in {types.UnionType, typing.Union}:  # X | None: empty means None
        if not text:
            return None
        hint = next(arm for arm in typing.get_args(hint) if arm is not type(None))
    try:
        if hint is bool:
            return _BOOLS[text.lower()]
        return Path(text) if hint is Path else hint(text)
    except (ValueError, KeyError):
        raise InvalidInput(f"environment: {variable} must be {_described(hint)}, not {text!r}") from None


def _described(hint: Any) -> str:
    return "true or false" if hint is bool else {int: "a whole number", float: "a number"}.get(hint, hint.__name__)
