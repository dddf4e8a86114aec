"""An offline join gives for every row, bit for bit, what an online lookup gave at that time, when the history had been
pushed in time order up to then. Both are compared with a brute-force oracle.
"""

import asyncio
import math
import struct
import tempfile
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from treadle.core.column import Column
from treadle.core.errors import InvalidInput, NotFound
from treadle.features import Definitions, Entity, FeatureService, FeatureView, Field, Source, Transform
from treadle.features.definition_store import DefinitionStore
from treadle.features.lookup_plan import LookupPlan, compile_plan
from treadle.features.offline.point_in_time import join_features, point_in_time_join
from treadle.features.online.lmdb_store import LmdbStore
from treadle.features.online.lookups import OnlineFeatures
from treadle.features.online.transform_runner import TransformRunner
from treadle.features.values import FeatureResult, FeatureStatus

AIRPORT, NUMBER = Entity("airport", "STRING"), Entity("number", "INT32")
FIELDS = [
    Field("wind", "FP64"),
    Field("half", "FP16"),
    Field("sky", "STRING"),
    Field("gusts", "INT64"),
    Field("wet", "BOOL"),
]
LIMIT = timedelta(microseconds=5)


def combine(columns: dict[str, Any]) -> dict[str, Any]:
    """A transform over two views and the context."""
    return {
        "total": columns["hourly__wind"] * columns["scale"] + columns["steady__gusts"],
        "said": np.array([None if each is None else each.upper() for each in columns["hourly__sky"]], object),
    }


COMBINE = Transform(
    "combine",
    f"{__name__}:combine",
    ["hourly__wind", "steady__gusts", "hourly__sky", "scale"],
    [Field("total", "FP64"), Field("said", "STRING")],
    call=combine,
)

keys = st.tuples(st.sampled_from(["EWR", "JFK", ""]), st.sampled_from([-1, 0, 2**31 - 1]))
values = st.tuples(
    st.none() | st.floats(),
    st.none() | st.floats(width=16),
    st.none() | st.text(max_size=4),
    st.none() | st.integers(-(2**63), 2**63 - 1),
    st.none() | st.booleans(),
)
moments = st.integers(-20, 20)
rows = st.lists(st.tuples(keys, moments, values), max_size=12)
# Online, moment 0 means "now".
questions = st.lists(st.tuples(keys, moments.filter(bool), st.none() | st.floats()), min_size=1, max_size=8)

Row = tuple[tuple[str, int], int, tuple[Any, ...]]
Question = tuple[tuple[str, int], int, float | None]


def write_history(path: Path, history: Sequence[Row], files: int = 2) -> None:
    """Parquet files with the rows in the given order; the last row of an event time is used."""
    path.mkdir()
    cut = len(history) // files
    for at in range(files):
        part = history[at * cut : None if at == files - 1 else (at + 1) * cut]
        table = {
            "airport": pa.array([key[0] for key, _, _ in part], pa.string()),
            "number": pa.array([key[1] for key, _, _ in part], pa.int32()),
            "known_at": pa.array([moment for _, moment, _ in part], pa.timestamp("us")),
        }
        types = [pa.float64(), pa.float32(), pa.string(), pa.int64(), pa.bool_()]
        for position, (field, kind) in enumerate(zip(FIELDS, types, strict=True)):
            table[field.name] = pa.array([each[position] for _, _, each in part], kind)
        pq.write_table(pa.table(table), path / f"part-{at}.parquet")


def definitions(folder: Path) -> Definitions:
    hourly = FeatureView("hourly", [AIRPORT, NUMBER], Source(str(folder / "hourly"), "known_at"), FIELDS, LIMIT)
    steady = FeatureView("steady", [AIRPORT, NUMBER], Source(str(folder / "steady"), "known_at"), FIELDS)
    service = FeatureService("both", [hourly, steady["gusts", "sky"]], [Field("scale", "FP64")], [COMBINE])
    return Definitions((hourly, steady), (service,))


def entity_rows(asked: Sequence[Question]) -> pa.Table:
    return pa.table({
        "airport": [key[0] for key, _, _ in asked],
        "number": pa.array([key[1] for key, _, _ in asked], pa.int32()),
        "event_timestamp": pa.array([moment for _, moment, _ in asked], pa.timestamp("us", "UTC")),
        "scale": pa.array([scale for _, _, scale in asked], pa.float64()),
        "label": list(range(len(asked))),
    })  # fmt: skip


class PreparedDefinitionStore(DefinitionStore):
    """A store that keeps the given functions, because a service cannot import this test module by name."""

    def __init__(self, file: Path, plan: LookupPlan, given: Definitions) -> None:
        super().__init__(file)
        self.apply(Definitions(given.views))
        object.__setattr__(self.snapshot, "services", {plan.service.name: plan.service})
        object.__setattr__(self.snapshot, "plans", {plan.service.name: plan})


async def replay(
    folder: Path, plan: LookupPlan, given: Definitions, histories: dict[str, Sequence[Row]], asked: Sequence[Question]
) -> list[list[FeatureResult]]:
    """Pushes both histories in time order and looks up each question at its time."""
    store, runner = LmdbStore(folder / "online", map_mib=16), TransformRunner()
    online = OnlineFeatures(PreparedDefinitionStore(folder / "definitions.json", plan, given), store, runner)
    answers: list[list[FeatureResult]] = [[] for _ in asked]
    for moment in range(-20, 21):
        for view, history in histories.items():
            for key, at, row in history:
                if at == moment:
                    online.push(view, pushed_columns(key, row), np.array([at], np.int64))
        for position, (key, at, scale) in enumerate(asked):
            if at == moment:
                entities = {
                    "airport": Column.of("airport", [key[0]]),
                    "number": Column.of("number", np.array([key[1]], np.int32)),
                }
                context = {"scale": Column.of("scale", np.array([scale], object), dtype="FP64")}
                answers[position] = await online.lookup("both", entities, context, now_micros=moment)
    runner.close()
    store.close()
    return answers


def pushed_columns(key: tuple[str, int], row: tuple[Any, ...]) -> dict[str, Column]:
    columns = {
        "airport": Column.of("airport", [key[0]]),
        "number": Column.of("number", np.array([key[1]], np.int32)),
    }
    for field, value in zip(FIELDS, row, strict=True):
        columns[field.name] = Column.of(field.name, [value], dtype=field.dtype)
    return columns


def bits(feature: FeatureResult, row: int) -> tuple[Any, ...]:
    """Value, status and age of one row, with floats as their bits."""
    column = feature.column
    value = column.values[row]
    raw = value if isinstance(value, str) else value.tobytes()
    null = column.nulls is not None and bool(column.nulls[row])
    return (
        column.name,
        column.dtype,
        raw,
        null,
        FeatureStatus(feature.statuses[row]).name,
        struct.pack("<d", feature.ages[row]),
    )


def oracle(history: Sequence[Row], key: tuple[str, int], asked: int) -> tuple[int, tuple[Any, ...]] | None:
    """The last of the newest rows with event time <= `asked`, found by a full scan."""
    best = None
    for other, at, row in history:
        if other == key and at <= asked and (best is None or at >= best[0]):
            best = (at, row)
    return best


def check_against_oracle(
    features: dict[str, FeatureResult], histories: dict[str, Sequence[Row]], asked: Sequence[Question]
) -> None:
    for row, (key, at, _) in enumerate(asked):
        for view, limit in (("hourly", 5), ("steady", None)):
            known = oracle(histories[view], key, at)
            for position, field in enumerate(FIELDS):
                feature = features.get(f"{view}__{field.name}")
                if feature is None:
                    continue
                status = FeatureStatus(feature.statuses[row])
                if known is None:
                    assert status is FeatureStatus.MISSING
                    assert math.isnan(feature.ages[row])
                    continue
                value = known[1][position]
                stale = limit is not None and at - known[0] > limit
                assert status is (
                    FeatureStatus.NULL if value is None else FeatureStatus.STALE if stale else FeatureStatus.PRESENT
                )
                assert feature.ages[row] == (at - known[0]) / 1e6
                if value is not None:
                    np.testing.assert_array_equal(feature.column.values[row], value)


@settings(max_examples=60, deadline=None)
@example(
    hourly=[(("EWR", 0), 3, (1.5, 0.5, "x", 1, True)), (("EWR", 0), 3, (2.5, None, "", 2, False))],
    steady=[],
    asked=[(("EWR", 0), 3, 1.0), (("EWR", 0), 2, None), (("EWR", 0), 9, math.nan)],
)
@given(hourly=rows, steady=rows, asked=questions)
def test_offline_join_equals_online_lookup_at_request_time(
    hourly: Sequence[Row], steady: Sequence[Row], asked: Sequence[Question]
) -> None:
    histories = {"hourly": hourly, "steady": steady}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for view, history in histories.items():
            write_history(folder / view, history)
        given_definitions = definitions(folder)
        plan = compile_plan(given_definitions.services[0], {each.name: each for each in given_definitions.views})
        offline = join_features(entity_rows(asked), plan)
        online = asyncio.run(replay(folder, plan, given_definitions, histories, asked))
    check_against_oracle(offline, histories, asked)
    for row, answer in enumerate(online):
        assert [bits(feature, 0) for feature in answer] == [bits(offline[name], row) for name in plan.outputs]


def test_the_table_keeps_rows_and_adds_columns(tmp_path: Path) -> None:
    write_history(tmp_path / "hourly", [(("EWR", 0), 1, (1.5, 0.5, "x", 1, True))])
    write_history(tmp_path / "steady", [(("EWR", 0), 1, (9.0, 0.5, None, 7, True))])
    found = definitions(tmp_path)
    asked = [(("JFK", 0), 9, 1.0), (("EWR", 0), 9, 2.0), (("EWR", 0), 2, 2.0)]
    table = point_in_time_join(entity_rows(asked), found.services[0], found.views, provenance=True)
    assert table["label"].to_pylist() == [0, 1, 2]
    assert table["hourly__wind__status"].to_pylist() == ["missing", "stale", "present"]
    assert table["hourly__wind__age"].to_pylist() == [None, 8e-06, 1e-06]
    assert table["steady__sky__status"].to_pylist() == ["missing", "null", "null"]
    assert table["hourly__wind"].to_pylist() == [None, 1.5, 1.5]
    assert table["total"].to_pylist() == [None, 10.0, 10.0]
    assert table["said__status"].to_pylist() == ["null", "stale", "present"]
    assert table.column_names.count("scale") == 1


def test_a_row_known_a_microsecond_later_does_not_leak(tmp_path: Path) -> None:
    write_history(
        tmp_path / "hourly",
        [(("EWR", 0), 5, (1.0, None, None, None, None)), (("EWR", 0), 6, (2.0, None, None, None, None))],
    )
    write_history(tmp_path / "steady", [])
    found = definitions(tmp_path)
    asked = [(("EWR", 0), 4, 1.0), (("EWR", 0), 5, 1.0), (("EWR", 0), 6, 1.0)]
    table = point_in_time_join(entity_rows(asked), found.services[0], found.views)
    assert table["hourly__wind"].to_pylist() == [None, 1.0, 2.0]


class TestBadInput:
    @pytest.fixture
    def found(self, tmp_path: Path) -> Definitions:
        write_history(tmp_path / "hourly", [(("EWR", 0), 5, (1.0, None, None, None, None))])
        write_history(tmp_path / "steady", [])
        return definitions(tmp_path)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda t: t.drop_columns(["airport"]), "no column 'airport'"),
            (lambda t: t.drop_columns(["scale"]), "no column 'scale'"),
            (lambda t: t.rename_columns({"event_timestamp": "event_time"}), "did you mean 'event_time'"),
            (lambda t: t.set_column(1, "number", pa.array([None], pa.int32())), "'number' row 0 is null"),
            (lambda t: t.set_column(1, "number", pa.array([2**40])), "'number' has values outside the range of INT32"),
            (lambda t: t.set_column(1, "number", pa.array(["7"])), "'number' is string, wanted INT32"),
            (
                lambda t: t.set_column(2, "event_timestamp", pa.array([7])),
                "'event_timestamp' is int64, wanted a timestamp",
            ),
            (lambda t: t.set_column(3, "scale", pa.array(["x"])), "'scale' is string, wanted FP64"),
            (lambda t: t.slice(0, 0), "no entity rows"),
        ],
    )
    def test_entity_rows(self, found: Definitions, change: Any, message: str) -> None:
        table = change(entity_rows([(("EWR", 0), 5, 1.0)]))
        with pytest.raises(InvalidInput, match=message):
            point_in_time_join(table, found.services[0], found.views)

    def test_missing_history(self, found: Definitions, tmp_path: Path) -> None:
        for part in (tmp_path / "hourly").iterdir():
            part.unlink()
        with pytest.raises(NotFound, match="No files found"):
            point_in_time_join(entity_rows([(("EWR", 0), 5, 1.0)]), found.services[0], found.views)

    @pytest.mark.parametrize(
        ("column", "values", "message"),
        [
            ("wind", ["secret"], "'wind' is VARCHAR, wanted FP64"),
            ("known_at", ["2013"], "timestamp column 'known_at' is VARCHAR"),
            ("number", [2**40], "outside the range"),
        ],
    )
    def test_history_of_the_wrong_type(
        self, found: Definitions, tmp_path: Path, column: str, values: list[Any], message: str
    ) -> None:
        path = tmp_path / "hourly" / "part-1.parquet"
        table = pq.read_table(path)
        (tmp_path / "hourly" / "part-0.parquet").unlink()
        pq.write_table(table.set_column(table.column_names.index(column), column, pa.array(values)), path)
        with pytest.raises(InvalidInput, match=message) as caught:
            point_in_time_join(entity_rows([(("EWR", 0), 5, 1.0)]), found.services[0], found.views)
        assert "secret" not in str(caught.value)
        assert str(2**40) not in str(caught.value)

    def test_history_with_a_column_name_that_duckdb_reserves(self, found: Definitions, tmp_path: Path) -> None:
        for path in (tmp_path / "hourly").iterdir():
            pq.write_table(pq.read_table(path).rename_columns({"wind": "file_row_number"}), path)
        with pytest.raises(InvalidInput, match="has a column called 'file_row_number'; rename it"):
            point_in_time_join(entity_rows([(("EWR", 0), 5, 1.0)]), found.services[0], found.views)

    def test_history_without_a_column(self, found: Definitions, tmp_path: Path) -> None:
        for path in (tmp_path / "hourly").iterdir():
            pq.write_table(pq.read_table(path).rename_columns({"wind": "winds"}), path)
        with pytest.raises(InvalidInput, match="no column 'wind'; did you mean 'winds'"):
            point_in_time_join(entity_rows([(("EWR", 0), 5, 1.0)]), found.services[0], found.views)
