"""The history of a view as a DuckDB relation with checked types, entity keys, and event times in microseconds.

Of rows with the same entity and the same event time, the last one is used: files ordered by name, rows by position in
their file. Rows whose key or event time is null are left out. Event times are truncated to microseconds.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from treadle.core.errors import InvalidInput, NotFound
from treadle.core.hints import did_you_mean
from treadle.features.definitions import Entity, FeatureView, Field, Source

EVENT_TIME: Final = "_event_micros"
_FILE: Final = "_file"
_ROW_NUMBER: Final = "file_row_number"
_THREADS: Final = 2
_SQL_TYPES: Final = {
    "BOOL": "BOOLEAN",
    "INT8": "TINYINT",
    "INT16": "SMALLINT",
    "INT32": "INTEGER",
    "INT64": "BIGINT",
    "UINT8": "UTINYINT",
    "UINT16": "USMALLINT",
    "UINT32": "UINTEGER",
    "UINT64": "UBIGINT",
    "FP16": "FLOAT",  # DuckDB has no half floats; numpy converts, so that offline and online round alike
    "FP32": "FLOAT",
    "FP64": "DOUBLE",
    "STRING": "VARCHAR",
    "BYTES": "BLOB",
    "TIMESTAMP": "TIMESTAMP",
}
_INTEGER_SQL_TYPES: Final = frozenset({
    "TINYINT", "SMALLINT", "INTEGER", "BIGINT", "HUGEINT", "UTINYINT", "USMALLINT", "UINTEGER", "UBIGINT", "UHUGEINT"
})  # fmt: skip
_NUMERIC_SQL_TYPES: Final = _INTEGER_SQL_TYPES | {"FLOAT", "DOUBLE"}


@contextmanager
def open_duckdb() -> Iterator[Any]:
    """A new in-memory DuckDB connection. Its errors are raised as InvalidInput (NotFound for files), without values."""
    import duckdb

    opened = duckdb.connect(config={"threads": _THREADS, "preserve_insertion_order": True})
    with suppress(duckdb.CatalogException):  # releases without this setting do not rewrite ASOF joins
        # For few rows DuckDB rewrites an ASOF join into an aggregate that turns -0.0 into 0.0.
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
    """SQL of a relation with the view's entities, `fields` and EVENT_TIME, one row for each entity and event time.

    It uses `lead` because DuckDB rewrites the usual row_number() = 1 into an aggregate that turns -0.0 into 0.0.

    NotFound when the source does not exist; InvalidInput when its columns are missing or of the wrong type.
    """
    source = view.source
    if source is None:
        raise InvalidInput(f"view {view.name!r} has no source: it is fed by pushes alone and has no history to read")
    files = quote_string(_file_pattern(source.path))
    types = _column_types(db, f"read_parquet({files}, union_by_name = true)")
    if _ROW_NUMBER in types:  # DuckDB gives the row number under this name only
        raise InvalidInput(f"the source of view {view.name!r} has a column called {_ROW_NUMBER!r}; rename it")
    scan = f"read_parquet({files}, filename = {quote_string(_FILE)}, file_row_number = true, union_by_name = true)"
    wanted: list[Entity | Field] = [*view.entities, *fields]
    columns = [_column_sql(view, each, types) for each in wanted]
    keys = ", ".join(quote_identifier(each.name) for each in view.entities)
    present = " AND ".join(f"{quote_identifier(each.name)} IS NOT NULL" for each in view.entities)
    event_time = _event_micros_sql(view, source, types)
    inner = f"SELECT {', '.join(columns)}, {event_time} AS {EVENT_TIME}, {_FILE}, {_ROW_NUMBER} FROM {scan}"  # noqa: S608  # every name is quoted
    return (
        f"SELECT * EXCLUDE ({_FILE}, {_ROW_NUMBER}) FROM ({inner}) WHERE {EVENT_TIME} IS NOT NULL AND {present} "  # noqa: S608  # as above
        f"QUALIFY lead({EVENT_TIME}) OVER (PARTITION BY {keys} ORDER BY {EVENT_TIME}, {_FILE}, {_ROW_NUMBER}) "
        f"IS DISTINCT FROM {EVENT_TIME}"
    )


def quote_identifier(name: str) -> str:
    """A quoted SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def quote_string(value: str) -> str:
    """A quoted SQL string."""
    return "'" + value.replace("'", "''") + "'"


def _file_pattern(path: str) -> str:
    return f"{path.rstrip('/')}/**/*.parquet" if "://" not in path and Path(path).is_dir() else path


def _column_types(db: Any, scan: str) -> dict[str, str]:
    """SQL types by column name."""
    rows = db.execute(f"DESCRIBE SELECT * FROM {scan}").fetchall()  # noqa: S608  # the path is quoted
    return {row[0]: row[1] for row in rows}


def _column_sql(view: FeatureView, wanted: Entity | Field, types: dict[str, str]) -> str:
    have = types.get(wanted.name)
    if have is None:
        raise InvalidInput(
            f"the source of view {view.name!r} has no column {wanted.name!r}{did_you_mean(wanted.name, types)}"
        )
    if not _is_compatible(have, wanted.dtype):
        raise InvalidInput(f"the source of view {view.name!r}: column {wanted.name!r} is {have}, wanted {wanted.dtype}")
    name = quote_identifier(wanted.name)
    if wanted.dtype == "TIMESTAMP":
        return f"make_timestamp(epoch_us({name})) AS {name}"
    return f"CAST({name} AS {_SQL_TYPES[wanted.dtype]}) AS {name}"


def _is_compatible(have: str, dtype: str) -> bool:
    if dtype == "STRING":
        return have == "VARCHAR" or have.startswith("ENUM")
    if dtype == "BYTES":
        return have == "BLOB"
    if dtype == "TIMESTAMP":
        return have.startswith("TIMESTAMP") or have == "DATE"
    if dtype == "BOOL":
        return have == "BOOLEAN"
    return have in (_NUMERIC_SQL_TYPES if dtype.startswith("FP") else _INTEGER_SQL_TYPES) or have.startswith("DECIMAL")


def _event_micros_sql(view: FeatureView, source: Source, types: dict[str, str]) -> str:
    have = types.get(source.timestamp_column)
    name = quote_identifier(source.timestamp_column)
    if have is None:
        raise InvalidInput(
            f"the source of view {view.name!r} has no timestamp column {source.timestamp_column!r}"
            f"{did_you_mean(source.timestamp_column, types)}"
        )
    if have in _INTEGER_SQL_TYPES:
        return f"CAST({name} AS BIGINT)"
    if have.startswith("TIMESTAMP") or have == "DATE":
        return f"epoch_us({name})"
    raise InvalidInput(
        f"the source of view {view.name!r}: timestamp column {source.timestamp_column!r} is {have}, wanted a timestamp "
        "or whole microseconds since 1970"
    )
