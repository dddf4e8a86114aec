"""Gate policies as TOML files.

    name = "flights"
    minimum_rows = 1000

    [[threshold]]
    metric = "roc_auc"
    at_least = 0.7
    slice = "origin=*"
    confident = true

    [[threshold]]
    metric = "log_loss"
    relative_to_baseline = true
    at_most = 0.0

An invalid file raises InvalidInput with the file, the line, the key, and the allowed values.
"""

import re
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from treadle.core.errors import InvalidInput, NotFound
from treadle.core.hints import did_you_mean
from treadle.v1 import evaluation_pb2

_POLICY_KEYS: Mapping[str, type] = {"name": str, "minimum_rows": int, "threshold": list}
_THRESHOLD_KEYS: Mapping[str, type] = {
    "metric": str,
    "at_least": float,
    "at_most": float,
    "relative_to_baseline": bool,
    "slice": str,
    "confident": bool,
    "minimum_rows": int,
}
_TYPE_WORDS: Mapping[type, str] = {
    str: "a text in quotes",
    int: "a whole number, 0 or more",
    float: "a finite number",
    bool: "true or false",
    list: "tables, each opened by [[threshold]]",
}


def read_policy(path: Path) -> evaluation_pb2.GatePolicy:
    """The policy in a TOML file. NotFound if there is no such file, InvalidInput if it is invalid."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise NotFound(f"gate policy {path} does not exist") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(f"gate policy {path} cannot be read: {error}") from error
    return parse_policy(text, source=str(path))


def parse_policy(text: str, *, source: str = "policy") -> evaluation_pb2.GatePolicy:
    """The policy in TOML text; `source` is its name in error messages. InvalidInput if it is invalid."""
    try:
        document = tomllib.loads(text)
    except ValueError as error:  # invalid TOML, or a number with more digits than Python parses
        raise InvalidInput(f"{source}: {error}") from error
    reader = _PolicyReader(text, source)
    reader.check(document, _POLICY_KEYS, table=None)
    policy = evaluation_pb2.GatePolicy(name=document.get("name", ""), minimum_rows=document.get("minimum_rows", 0))
    thresholds = document.get("threshold", [])
    if not thresholds:
        raise InvalidInput(f"{source}: a policy needs at least one [[threshold]]")
    for index, table in enumerate(thresholds):
        policy.thresholds.append(reader.threshold(table, index))
    return policy


class _PolicyReader:
    """Checks the keys and values of TOML tables, and finds their lines for error messages."""

    def __init__(self, text: str, source: str) -> None:
        self._lines = text.splitlines()
        self._source = source
        self._headers = [i for i, line in enumerate(self._lines) if re.match(r"\s*\[\[\s*threshold\s*\]\]", line)]

    def threshold(self, table: Any, index: int) -> evaluation_pb2.Threshold:
        if not isinstance(table, dict):
            raise self._error("threshold", None, f"must be {_TYPE_WORDS[list]}")
        self.check(table, _THRESHOLD_KEYS, table=index)
        if "metric" not in table or not table["metric"]:
            raise self._error("metric", index, "is missing: name the metric that the threshold is for")
        if "at_least" not in table and "at_most" not in table:
            raise self._error("at_least", index, "is missing: set at_least or at_most")
        return evaluation_pb2.Threshold(**table)

    def check(self, values: Mapping[str, Any], keys: Mapping[str, type], *, table: int | None) -> None:
        for key, value in values.items():
            if key not in keys:
                raise self._error(key, table, f"is unknown{did_you_mean(key, keys)}")
            if not _has_type(value, keys[key]):
                raise self._error(key, table, f"must be {_TYPE_WORDS[keys[key]]}")

    def _error(self, key: str, table: int | None, what: str) -> InvalidInput:
        return InvalidInput(f'{self._source}, line {self._line(key, table)}: "{key}" {what}')

    def _line(self, key: str, table: int | None) -> int:
        """The number (from 1) of the line of a key, or of the header of its table.

        It is found by searching the text, because tomllib does not keep lines.
        """
        known = table is not None and table < len(self._headers)
        start = self._headers[table] if known and table is not None else 0
        after = [line for line in self._headers if line > start or table is None]
        end = after[0] if after else len(self._lines)
        entry = re.compile(rf"""\s*["']?{re.escape(key)}["']?\s*[=.]""")
        header = re.compile(rf"""\s*\[+\s*["']?{re.escape(key)}["']?\s*[.\]]""")
        for number, line in enumerate(self._lines):
            if (start <= number < end and entry.match(line)) or (table is None and header.match(line)):
                return number + 1
        return start + 1


def _has_type(value: Any, kind: type) -> bool:
    if kind is float:
        return (
            type(value) in {int, float} and abs(value) <= sys.float_info.max
        )  # whole numbers in TOML may exceed the range of a float
    if kind is int:
        return type(value) is int and 0 <= value < 2**63
    return isinstance(value, kind)
