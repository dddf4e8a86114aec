"""Deployments as flags of `treadle deploy` or as TOML files. Errors name the flag, or the file and key."""

import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from treadle.client import Fallback
from treadle.core.errors import InvalidInput, NotFound
from treadle.core.hints import did_you_mean

_NUMBER = (int, float)
_KEYS: Mapping[str, type | tuple[type, ...]] = {
    "name": str,
    "traffic": dict,
    "fallback": list,
    "shadows": list,
    "sticky_entity": str,
    "timeout_seconds": _NUMBER,
    "feature_timeout_seconds": _NUMBER,
    "strict_features": bool,
    "description": str,
}
_STEP_KEYS: Mapping[str, type | tuple[type, ...]] = {
    "name": str,
    "version": str,
    "constant": dict,
    "timeout_seconds": _NUMBER,
}


@dataclass(frozen=True)
class DeployPlan:
    """The arguments of `AsyncClient.deploy`."""

    name: str
    traffic: Mapping[str, float] = field(default_factory=dict)
    fallbacks: tuple[Fallback, ...] = ()
    shadows: tuple[str, ...] = ()
    sticky_entity: str = ""
    timeout_seconds: float = 0.0
    feature_timeout_seconds: float = 0.0
    strict_features: bool = False
    description: str = ""

    def with_flags(self, **flags: Any) -> Self:
        """The plan with the values of all given flags."""
        return replace(self, **{key: value for key, value in flags.items() if value not in (None, (), {})})


def read_plan(path: Path) -> DeployPlan:
    """The plan in a TOML file. NotFound, or InvalidInput that names file and key."""
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise NotFound(f"deployment file {path} does not exist") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InvalidInput(f"{path}: {error}") from None
    _check(document, _KEYS, str(path))
    if "name" not in document:
        raise InvalidInput(f'{path}: "name" is missing: the name of the deployment')
    steps = document.pop("fallback", [])
    document["fallbacks"] = tuple(_step(step, f"{path}, fallback {n}") for n, step in enumerate(steps, 1))
    document["shadows"] = tuple(document.get("shadows", ()))
    if not all(isinstance(version, str) for version in document["shadows"]):
        raise InvalidInput(f'{path}: "shadows" must be a list of texts such as "flight-delay/3"')
    for version, weight in document.get("traffic", {}).items():
        if not _has_type(weight, _NUMBER):
            raise InvalidInput(f'{path}: traffic of "{version}" must be a number, in percent')
    return DeployPlan(**document)


def parse_traffic(text: str) -> tuple[str, float]:
    """Version and percent of "flight-delay/2=90". InvalidInput for another form."""
    version, equals, weight = text.rpartition("=")
    try:
        if equals:
            return version, float(weight)
    except ValueError:
        pass
    raise InvalidInput(f"--traffic {text!r} is not MODEL/VERSION=PERCENT")


def parse_fallback(text: str) -> Fallback:
    """The fallback of "rule=on-time-rule/1" or 'guess={"probability": 0.2}'. InvalidInput for another form."""
    name, equals, answer = text.partition("=")
    if not equals or not name or not answer:
        raise InvalidInput(f"--fallback {text!r} is not NAME=MODEL/VERSION or NAME=JSON")
    if not answer.startswith("{"):
        return Fallback(name, version=answer)
    try:
        constant = json.loads(answer)
    except ValueError as error:
        raise InvalidInput(f"--fallback {name}: no JSON object of outputs: {error}") from None
    return Fallback(name, constant=_constant(constant))


def _step(step: Any, where: str) -> Fallback:
    if not isinstance(step, dict):
        raise InvalidInput(f"{where}: must be a table, opened by [[fallback]]")
    _check(step, _STEP_KEYS, where)
    if "name" not in step or ("version" in step) == ("constant" in step):
        raise InvalidInput(f'{where}: needs a "name", and either a "version" or a "constant"')
    constant = _constant(step["constant"]) if "constant" in step else None
    return Fallback(step["name"], step.get("version", ""), constant, float(step.get("timeout_seconds", 0)))


def _constant(outputs: Mapping[str, Any]) -> dict[str, Any]:
    """The constant with one row for each output."""
    return {name: [value] for name, value in outputs.items()}


def _check(table: Mapping[str, Any], keys: Mapping[str, type | tuple[type, ...]], where: str) -> None:
    for key, value in table.items():
        if key not in keys:
            raise InvalidInput(f'{where}: "{key}" is unknown{did_you_mean(key, keys)}')
        if not _has_type(value, keys[key]):
            raise InvalidInput(f'{where}: "{key}" has the wrong type')


def _has_type(value: Any, kind: type | tuple[type, ...]) -> bool:
    """`isinstance`, but booleans are no numbers."""
    return isinstance(value, kind) and isinstance(value, bool) == (kind is bool)
