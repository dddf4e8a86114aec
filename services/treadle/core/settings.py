"""Settings from the environment: typed, frozen, checked at start, all mistakes in one error.

    @dataclass(frozen=True)
    class FeatureSettings(Settings):
        max_rows: Annotated[int, bounds(1, 1_000_000)] = 100_000

A settings class is a frozen dataclass whose fields all have defaults; the rule of a field stands in its annotation.
`settings_from(FeatureSettings, environ, "FEATURES")` reads TREADLE_FEATURES_MAX_ROWS for the field `max_rows`. A
variable with that prefix that is no field is an error.
"""

import dataclasses
import re
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from treadle.core.errors import InvalidInput, Violation
from treadle.core.hints import did_you_mean

T = TypeVar("T")

_HTTP_URL = re.compile(r"https?://[^/\s]+")
_BOOLS = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}
_TYPES = {bool: "true or false", int: "a whole number", float: "a number"}


@dataclasses.dataclass(frozen=True, slots=True)
class Rule:
    """Which values a field may have: `text` describes them, as in "must be `text`"."""

    text: str
    allows: Callable[[Any], bool]


def bounds(low: float, high: float) -> Rule:
    """Numbers from `low` to `high`, both included. NaN is not among them."""
    return Rule(f"{low:,} to {high:,}", lambda value: low <= value <= high)


def one_of(*choices: str) -> Rule:
    """These words, in capitals or not."""
    return Rule(f"{', '.join(choices[:-1])} or {choices[-1]}", lambda value: value.lower() in choices)


def _is_host_port(text: str) -> bool:
    host, _, port = text.rpartition(":")
    return bool(host) and port.isascii() and port.isdigit() and int(port) <= 65_535


HOST_PORT = Rule("host:port, port 0 to 65,535", _is_host_port)
LISTEN_ADDRESS = Rule(
    "host:port, port 0 to 65,535, or unix:path",
    lambda text: text.startswith("unix:") or _is_host_port(text),
)
HTTP_URL = Rule("http://host:port or https://host:port", lambda text: bool(_HTTP_URL.match(text)))


class Settings:
    """Base of the settings classes. InvalidInput when one is made with values that its rules forbid."""

    def __post_init__(self) -> None:
        name, values = type(self).__name__, [(field, getattr(self, field.name)) for field in _fields(type(self))]
        _refuse([field.wrong(f"{name}.{field.name}", value) for field, value in values if not field.allows(value)])


def settings_from(cls: type[T], environ: Mapping[str, str], prefix: str) -> T:
    """An instance of `cls` with the values that the environment sets.

    InvalidInput lists every variable that is misspelt, of another type or out of bounds, with what is allowed.
    """
    start = f"TREADLE_{prefix}_" if prefix else "TREADLE_"
    fields = {start + field.name.upper(): field for field in _fields(cls)}
    wrong: list[Violation] = []
    values: dict[str, Any] = {}
    for variable, text in environ.items():
        field = fields.get(variable)
        if field is None:
            if prefix and variable.startswith(start):
                wrong.append(Violation(variable, f"is no setting{did_you_mean(variable, fields)}"))
            continue
        try:
            values[field.name] = field.parse(text)
        except (ValueError, KeyError):
            wrong.append(field.wrong(variable, text))
    _refuse(wrong)
    return cls(**values)


def rules(cls: type[Any]) -> dict[str, str]:
    """The text of each field's rule by the field's name; empty where it has none."""
    return {field.name: field.rule.text if field.rule else "" for field in _fields(cls)}


@dataclasses.dataclass(frozen=True, slots=True)
class _Field:
    """One field of a settings class."""

    name: str
    type: Any
    optional: bool
    """Whether it may be None, which an empty variable means."""
    rule: Rule | None

    def parse(self, text: str) -> Any:
        """The value that a variable's text stands for. ValueError or KeyError where it stands for none that may be."""
        if self.optional and not text:
            return None
        value = _BOOLS[text.lower()] if self.type is bool else self.type(text)
        if not self.allows(value):
            raise ValueError
        return value

    def allows(self, value: Any) -> bool:
        return self.rule is None or (self.optional and value is None) or self.rule.allows(value)

    def wrong(self, where: str, value: Any) -> Violation:
        """What is wrong with this value at `where`, a variable or a field."""
        wanted = [_TYPES.get(self.type, ""), self.rule.text if self.rule else ""]
        return Violation(where, f"must be {', '.join(filter(None, wanted))}; not {value!r:.80}")


def _fields(cls: type[Any]) -> list[_Field]:
    hints = typing.get_type_hints(cls, include_extras=True)
    return [_field(field.name, hints[field.name]) for field in dataclasses.fields(cls)]


def _field(name: str, hint: Any) -> _Field:
    rule = None
    if typing.get_origin(hint) is typing.Annotated:
        hint, rule = typing.get_args(hint)
    arms = typing.get_args(hint) if typing.get_origin(hint) in {types.UnionType, typing.Union} else (hint,)
    (own,) = [arm for arm in arms if arm is not types.NoneType]
    return _Field(name, own, len(arms) > 1, rule)


def _refuse(wrong: Sequence[Violation]) -> None:
    if wrong:
        told = "\n  ".join(f"{each.field} {each.description}" for each in wrong)
        raise InvalidInput(f"settings: correct these, or unset them to get the defaults:\n  {told}", wrong)
