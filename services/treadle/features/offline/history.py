"""A view's history as DuckDB reads it: one relation with checked types, keys, and event times in microseconds.

Of rows with the same entity and the same event time, the one that stands last counts: files in order of name, rows in
order of place. Rows without a key or an event time are nobody's and are left out. Event times finer than a
microsecond are cut off.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from treadle.core.errors import InvalidInput, NotFound
from treadle.core.hints import did_you_mean
from treadle.features.definitions import Entity, FeatureView, Field, Source

EVENT: Final = "_event_micros"
_FILE: Final = "_file"
_PLACE: Final = "file_row_number"
_THREADS: Final = 2
_SQL: Final = {
    "BOOL": "BOOLEAN",
    "INT8": "TINYINT",
    "INT16": "SMALLINT",
    "INT32": "INTEGER",
    "INT64": "BIGINT",
    "UINT8": "UTINYINT",
    "UINT16": "USMALLINT",
    "UINT32": "UINTEGER",
    "UINT64": "UBIGINT",
    "FP16": "FLOAT",  # DuckDB has no half floats; the last step to them is numpy's, the same on every path
    "FP32": "FLOAT",
    "FP64": "DOUBLE",
    "STRING": "VARCHAR",
    "BYTES": "BLOB",
    "TIMESTAMP": "TIMESTAMP",
}
_INTEGERS: Final = frozenset({
    "TINYINT", "SMALLINT", "INTEGER", "BIGINT", "HUGEINT", "UTINYINT", "USMALLINT", "UINTEGER", "UBIGINT", "UHUGEINT"
})  # fmt: skip
_NUMBERS: Final = _INTEGERS | {"FLOAT", "DOUBLE"}


@contextmanager
def connection() -> Iterator[Any]:
    """A DuckDB of its own, in memory, with times in UTC. Its errors come out as InvalidInput without values."""
    import duckdb

    opened = duckdb.connect(config={"threads": _THREADS, "preserve_insertion_order": True})
    with suppress(duckdb.CatalogException):  # releases without this setting have no such rewrite either
        # For few rows DuckDB turns an ASOF join into an aggregate that turns -0.0 into 0.0.
        opened.execute("SET asof_loop_join_threshold = 0")
    try:
        yield opened
    except duckdb.IOException as error:
        raise NotFound(f"history cannot be read: {str(error).splitlines()[0]}") from None
    except duckdb.Error as error:
        # The text of conversion errors quotes values of columns.
        raise InvalidInput(
            f"DuckDB failed on the history ({type(error).__name__}): a file may be damaged, or hold values outside the "
            "range of the defined types"
        ) from None
    finally:
        opened.close()


def history_sql(db: Any, view: FeatureView, fields: Sequence[Field]) -> str:
    """SQL of a relation with the view's entities, `fields` and EVENT, one row for each entity and event time.

    Built with `lead`, as the more usual row_number() = 1 is rewritten by DuckDB into an aggregate that turns -0.0 to 0.

    NotFound when the source is not there; InvalidInput when its columns are missing or of the wrong type.
    """
    source = view.source
    if source is None:
        raise InvalidInput(f"view {view.name!r} has no source: it is fed by pushes alone and has no history to read")
    files = text(_pattern(source.path))
    types = _columns(db, f"read_parquet({files}, union_by_name = true)")
    if _PLACE in types:  # DuckDB numbers rows under this name and knows no other
        raise InvalidInput(f"the source of view {view.name!r} has a column called {_PLACE!r}; rename it")
    scan = f"read_parquet({files}, filename = {text(_FILE)}, file_row_number = true, union_by_name = true)"
    wanted: list[Entity | Field] = [*view.entities, *fields]
    columns = [_column(view, each, types) for each in wanted]
    keys = ", ".join(ident(each.name) for each in view.entities)
    present = " AND ".join(f"{ident(each.name)} IS NOT NULL" for each in view.entities)
    inner = f"SELECT {', '.join(columns)}, {_event(view, source, types)} AS {EVENT}, {_FILE}, {_PLACE} FROM {scan}"  # noqa: S608  # every name is quoted
    return (
        f"SELECT * EXCLUDE ({_FILE}, {_PLACE}) FROM ({inner}) WHERE {EVENT} IS NOT NULL AND {present} "  # noqa: S608  # as above
        f"QUALIFY lead({EVENT}) OVER (PARTITION BY {keys} ORDER BY {EVENT}, {_FILE}, {_PLACE}) "
        f"IS DISTINCT FROM {EVENT}"
    )


def ident(name: str) -> str:
    """A quoted SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def text(value: str) -> str:
    """A quoted SQL string."""
    return "'" + value.replace("'", "''") + "'"


def _pattern(path: str) -> str:
    return f"{path.rstrip('/')}/**/*.parquet" if "://" not in path and Path(path).is_dir() else path


def _columns(db: Any, scan: str) -> dict[str, str]:
    """SQL types by column name."""
    rows = db.execute(f"DESCRIBE SELECT * FROM {scan}").fetchall()  # noqa: S608  # the path is quoted
    return {row[0]: row[1] for row in rows}


def _column(view: FeatureView, wanted: Entity | Field, types: dict[str, str]) -> str:
    have = types.get(wanted.name)
    if have is None:
        raise InvalidInput(
            f"the source of view {view.name!r} has no column {wanted.name!r}{did_you_mean(wanted.name, types)}"
        )
    if not _fits(have, wanted.dtype):
        raise InvalidInput(f"the source of view {view.name!r}: column {wanted.name!r} is {have}, wanted {wanted.dtype}")
    name = ident(wanted.name)
    if wanted.dtype == "TIMESTAMP":
        return f"make_timestamp(epoch_us({name})) AS {name}"
    return f"CAST({name} AS {_SQL[wanted.dtype]}) AS {name}"


def _fits(have: str, dtype: str) -> bool:
    if dtype == "STRING":
        return have == "VARCHAR" or have.startswith("ENUM")
    if dtype == "BYTES":
        return have == "BLOB"
    if dtype == "TIMESTAMP":
        return have.startswith("TIMESTAMP") or have == "DATE"
    if dtype == "BOOL":
        return have == "BOOLEAN"
    return have in (_NUMBERS if dtype.startswith("FP") else _INTEGERS) or have.startswith("DECIMAL")


def _event(view: FeatureView, source: Source, types: dict[str, str]) -> str:
    have = types.get(source.timestamp_column)
    name = ident(source.timestamp_column)
    if have is None:
        raise InvalidInput(
            f"the source of view {view.name!r} has no timestamp column {source.timestamp_column!r}"
            f"{did_you_mean(source.timestamp_column, types)}"
        )
    if have in _INTEGERS:
        return f"CAST({name} AS BIGINT)"
    if have.startswith("TIMESTAMP") or have == "DATE":
        return f"epoch_us({name})"
    raise InvalidInput(
        f"the source of view {view.name!r}: timestamp column {source.timestamp_column!r} is {have}, wanted a timestamp "
        "or whole microseconds since 1970"
    )
