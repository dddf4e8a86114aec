"""Writes the tables of operations.md from the code that they describe: `python docs/tables.py`.

A table stands between `<!-- begin NAME -->` and `<!-- end -->`. A test fails when one is not what the code says.
"""

import ast
import dataclasses
import inspect
import re
import textwrap
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from types import NoneType
from typing import Any

from treadle.core.settings import rules
from treadle.mesh.services import BASE_PORT, METRICS_OFFSET, REST_OFFSET, SERVICES, service_specs
from treadle.observability.metric_catalog import METRICS
from treadle.rpc.app.process_settings import ProcessSettings

PAGE = Path(__file__).with_name("operations.md")
_BLOCK = re.compile(r"(<!-- begin (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
_TYPES = {str: "text", int: "whole number", float: "number", bool: "true or false", Path: "path"}


def settings_classes() -> dict[str, type]:
    """By prefix of their variables: TREADLE_ for every process, then each service's own."""
    own = {f"TREADLE_{spec.name.upper()}_": spec.settings_class for spec in service_specs(sorted(SERVICES))}
    return {"TREADLE_": ProcessSettings, **own}


def field_docs(settings: type) -> dict[str, str]:
    """The string under each field, in one line; empty where there is none."""
    body = next(ast.iter_child_nodes(ast.parse(textwrap.dedent(inspect.getsource(settings))))).body  # type: ignore[attr-defined]  # a class
    docs = {field.name: "" for field in dataclasses.fields(settings)}
    for field, below in pairwise(body):
        named = isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        if named and isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
            docs[field.target.id] = " ".join(str(below.value.value).split())
    return docs


def settings_table() -> Iterator[str]:
    """Every setting of every process: one table for each prefix."""
    for prefix, settings in settings_classes().items():
        hints, docs, allowed = typing.get_type_hints(settings), field_docs(settings), rules(settings)
        yield f"\n`{prefix}…`: {'every process' if settings is ProcessSettings else prefix.split('_')[1].lower()}\n"
        yield from _table(
            ("variable", "type", "allowed", "default", "meaning"),
            (
                (
                    f"`{prefix}{field.name.upper()}`",
                    _type(hints[field.name]),
                    allowed[field.name],
                    _shown(field.default),
                    docs[field.name],
                )
                for field in dataclasses.fields(settings)
            ),
        )


def metrics_table() -> Iterator[str]:
    """Every metric that dashboards and alerts may rely on."""
    rows = ((f"`{name}`", metric.kind, metric.shows) for name, metric in METRICS.items())
    return _table(("metric", "kind", "shows"), rows)


def processes_table() -> Iterator[str]:
    """Every process of a mesh with its ports and its folder."""
    rows = []
    for service in SERVICES.values():
        port = BASE_PORT + service.offset
        rest = f", REST {BASE_PORT + REST_OFFSET}" if service.name == "gateway" else ""
        rows.append((service.name, f"{port}{rest}", str(port + METRICS_OFFSET), f"`{service.name}/`"))
    return _table(("process", "gRPC", "metrics", "data in the home"), rows)


TABLES: Mapping[str, Callable[[], Iterator[str]]] = {
    "processes": processes_table,
    "settings": settings_table,
    "metrics": metrics_table,
}


def with_tables(page: str) -> str:
    """The page with every table as the code has it now."""

    def table(found: re.Match[str]) -> str:
        lines = "\n".join(TABLES[found[2]]())
        return f"{found[1]}{lines}\n{found[3]}"

    return _BLOCK.sub(table, page)


def _table(heads: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> Iterator[str]:
    yield f"| {' | '.join(heads)} |"
    yield f"|{'---|' * len(heads)}"
    for row in rows:
        yield f"| {' | '.join(row)} |"


def _type(hint: Any) -> str:
    (kind,) = [arm for arm in typing.get_args(hint) or (hint,) if arm is not NoneType]
    return _TYPES[kind]


def _shown(default: Any) -> str:
    if default in (None, ""):
        return "empty"
    return f"`{str(default).lower() if isinstance(default, bool) else default}`"


if __name__ == "__main__":
    PAGE.write_text(with_tables(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
