"""Queries on the ledger: DuckDB over its Parquet files, with bounded memory."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from types import TracebackType
from typing import Any, Self

import numpy as np

from treadle.core.column import Array, Column
from treadle.evaluation.ledger.file_store import FileStore
from treadle.evaluation.ledger.tables import BATCHES, LABELS, SCALARS, batch_schema, label_schema
from treadle.rpc.codec import column_gather
from treadle.v1 import evaluation_pb2, types_pb2

MEMORY_LIMIT = "512MB"
"""DuckDB spills to disk beyond this."""
_NAMES = ", ".join(name for name, _ in SCALARS)
_STATUS = {number: name.removeprefix("FEATURE_STATUS_") for name, number in types_pb2.FeatureStatus.items()}


@dataclass(frozen=True, slots=True)
class LedgerQuery:
    """Selects predictions; "" and 0 select all.

    The time of prediction is in [from_micros, to_micros), microseconds since 1970.
    """

    deployment: str = ""
    from_micros: int = 0
    to_micros: int = 0
    model: str = ""
    version: int = 0
    include_fallbacks: bool = False
    """Whether live metrics score the answers of fallbacks."""

    def where(self) -> tuple[str, list[Any]]:
        """The SQL condition on batches, and its parameters."""
        conditions = ["at_micros >= ?"]
        parameters: list[Any] = [self.from_micros]
        for condition, value in (
            ("at_micros < ?", self.to_micros),
            ("deployment = ?", self.deployment),
            ("model = ?", self.model),
            ("version = ?", self.version),
        ):
            if value:
                conditions.append(condition)
                parameters.append(value)
        return " AND ".join(conditions), parameters


@dataclass(frozen=True)
class LedgerRows:
    """The rows of a query, one prediction a row.

    `table` is an Arrow table with prediction_id, SCALARS, `label` and `label_at_micros` (null without a label). The
    methods decode entities, features and outputs.
    """

    table: Any
    _messages: Sequence[bytes]
    _counts: Array
    """The number of rows of each message."""
    _message: Array
    """The index of its message, for each row of the table."""
    _position: Array
    """The row within its message, for each row of the table."""

    def take(self, rows: Array) -> "LedgerRows":
        """The rows at the given positions of the table."""
        kept, message = np.unique(self._message[rows], return_inverse=True)
        messages = [self._messages[index] for index in kept.tolist()]
        return LedgerRows(self.table.take(rows), messages, self._counts[kept], message, self._position[rows])

    def with_request_fields(self) -> "LedgerRows":
        """The rows with the trace id and latency of each request, where a batch holds the rows of several requests."""
        import pyarrow as pa

        several = np.flatnonzero(self._counts > 1).tolist()
        batches = {index: evaluation_pb2.PredictionBatch.FromString(self._messages[index]) for index in several}
        table = self.table
        for column, part in (("trace_id", "trace_ids"), ("latency_seconds", "latencies_seconds")):
            own = {index: each for index, batch in batches.items() if len(each := list(getattr(batch, part)))}
            if own:
                places = zip(table[column].to_pylist(), self._message.tolist(), self._position.tolist(), strict=True)
                values = [own[message][place] if message in own else shared for shared, message, place in places]
                at = table.schema.get_field_index(column)
                table = table.set_column(at, column, pa.array(values, table.schema.field(column).type))
        return replace(self, table=table)

    def entities(self) -> dict[str, Column]:
        """The entity key columns by name."""
        return self._columns(column_gather.entities)

    def features(self) -> dict[str, Column]:
        """The feature columns that the models received, by name."""
        return self._columns(column_gather.features)

    def outputs(self) -> dict[str, Column]:
        """The output columns by name."""
        return self._columns(column_gather.outputs)

    def statuses(self, feature: str) -> list[tuple[str, float] | None]:
        """Status ("PRESENT", …) and age in seconds of one feature in each row; None for rows without the feature."""
        found: list[tuple[str, float] | None] = []
        for message, count in zip(self._messages, self._counts.tolist(), strict=True):
            batch = evaluation_pb2.PredictionBatch.FromString(message)
            mine = next((each for each in batch.features if each.column.name == feature), None)
            if mine is None:
                found += [None] * count
            else:
                names = [_STATUS.get(status, "UNSPECIFIED") for status in mine.statuses]
                found += zip(names, mine.ages_seconds, strict=True)
        return [found[row] for row in self._positions().tolist()]

    def _columns(self, select: column_gather.ColumnSelector) -> dict[str, Column]:
        positions = self._positions()
        found = column_gather.gather(self._messages, self._counts.tolist(), select)
        return {name: column.take(positions) for name, column in found.items()}

    def _positions(self) -> Array:
        """The position of each row of the table among the rows of all messages."""
        starts = np.cumsum(self._counts) - self._counts
        return np.asarray(starts[self._message] + self._position)


@dataclass(frozen=True, slots=True)
class Counts:
    """The numbers of predictions of one version, of those with a label that are scored, and of degraded ones."""

    predictions: int
    labelled: int
    degraded: int


@dataclass(frozen=True)
class LiveWindow:
    """The data of live metrics.

    `counts` are by model and version; `scored` holds the labelled rows to score: outputs only, no shadows.
    """

    counts: Mapping[tuple[str, int], Counts]
    scored: LedgerRows


class LedgerReader:
    """A DuckDB connection over the files that are valid now. OSError if a compaction has deleted one of them since."""

    def __init__(self, store: FileStore) -> None:
        self._store = store

    def __enter__(self) -> Self:
        import duckdb

        spill = str(self._store.folder / "spill")
        self._connection = duckdb.connect(config={"memory_limit": MEMORY_LIMIT, "threads": 2, "temp_directory": spill})
        try:
            for kind, schema in ((BATCHES, batch_schema()), (LABELS, label_schema())):
                if files := self._store.files(kind):
                    self._with_os_error(partial(self._view, kind, files))
                else:
                    self._connection.register(kind, schema.empty_table())
        except BaseException:
            self._connection.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._connection.close()

    def rows(self, query: LedgerQuery, ids: Sequence[str] | None = None) -> LedgerRows:
        """The predictions of a query in the order of time, with everything recorded; with `ids`, only those."""
        self._create_answers(query, ids)
        return self._rows(
            "SELECT * FROM answers ORDER BY at_micros, prediction_id", [], "message"
        ).with_request_fields()

    def live(self, query: LedgerQuery, newest: int) -> LiveWindow:
        """Counts of each version, and outputs of its `newest` labelled rows."""
        self._create_answers(query, None)
        counted = "label IS NOT NULL" + ("" if query.include_fallbacks else " AND served_by NOT LIKE 'fallback:%'")
        counts = self._table(
            f"""SELECT model, version, count(*), count(*) FILTER ({counted}), count(*) FILTER (degraded_reason <> '')
            FROM answers WHERE NOT shadow GROUP BY ALL ORDER BY ALL""",  # noqa: S608  # no input of callers
            [],
        )
        scored = self._rows(
            f"""SELECT * FROM answers WHERE NOT shadow AND {counted}
            QUALIFY row_number() OVER (PARTITION BY model, version ORDER BY at_micros DESC, prediction_id DESC) <= ?
            ORDER BY at_micros, prediction_id""",  # noqa: S608  # no input of callers
            [newest],
            "outputs",
        )
        columns = zip(*(column.to_pylist() for column in counts.columns), strict=True)
        return LiveWindow({(model, version): Counts(*rest) for model, version, *rest in columns}, scored)

    def _view(self, kind: str, files: list[str]) -> None:
        self._connection.read_parquet(files).create_view(kind)

    def _create_answers(self, query: LedgerQuery, ids: Sequence[str] | None) -> None:
        """Creates the table `answers` with one row a prediction: its label, its batch and its position there."""
        import pyarrow as pa

        where, parameters = query.where()
        among = ""
        if ids is not None:
            self._connection.register("wanted", pa.table({"id": pa.array(ids, pa.string())}))
            among = "WHERE prediction_id IN (SELECT id FROM wanted)"
        statement = f"""
          CREATE TEMP TABLE answers AS
          WITH every AS (
            SELECT unnest(prediction_ids) AS prediction_id, unnest(positions) AS position, batch, {_NAMES}
            FROM {BATCHES} WHERE {where}),
          mine AS (SELECT * FROM every {among}),
          known AS (
            SELECT prediction_id, max_by(label, (at_micros, sequence)) AS label, max(at_micros) AS label_at_micros
            FROM {LABELS} WHERE prediction_id IN (SELECT prediction_id FROM mine) GROUP BY prediction_id)
          SELECT mine.*, known.label, known.label_at_micros FROM mine LEFT JOIN known USING (prediction_id)"""  # noqa: S608  # no input of callers
        self._with_os_error(lambda: self._connection.execute(statement, parameters))

    def _rows(self, query: str, parameters: list[Any], part: str) -> LedgerRows:
        """The rows of a query on `answers`, with the column `part` ("message" or "outputs") of their batches."""
        import pyarrow as pa

        table = self._table(query, parameters)
        batches = pa.table({"batch": table["batch"].unique()})
        self._connection.register("picked", batches)
        stored = self._table(
            f"SELECT batch, rows, {part} AS message FROM {BATCHES} WHERE batch IN (SELECT batch FROM picked)",  # noqa: S608
            [],
        )
        numbers, counts = stored["batch"].to_numpy(), stored["rows"].to_numpy().astype(np.int64)
        order = np.argsort(numbers)
        message = order[np.searchsorted(numbers[order], table["batch"].to_numpy())]
        position = table["position"].to_numpy()
        return LedgerRows(
            table.drop_columns(["batch", "position"]), stored["message"].to_pylist(), counts, message, position
        )

    def _table(self, query: str, parameters: list[Any]) -> Any:
        return self._with_os_error(lambda: self._connection.sql(query, params=parameters).to_arrow_table())

    def _with_os_error(self, read: Callable[[], Any]) -> Any:
        import duckdb

        try:
            return read()
        except duckdb.IOException as error:
            raise OSError(str(error)) from error
