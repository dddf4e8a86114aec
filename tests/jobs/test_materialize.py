"""Materialization of history into the online store, up to a given time."""

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from treadle.core.column import Column
from treadle.core.errors import InvalidInput, NotFound
from treadle.features import Definitions, Entity, FeatureService, FeatureView, Field, Source
from treadle.features import definition_codec as codec
from treadle.features.offline.point_in_time import point_in_time_join
from treadle.jobs.materialize import ROWS_PER_MESSAGE, MaterializationResult, latest_rows, materialize, to_micros
from treadle.rpc.codec.columns import decode, encode
from treadle.v1 import features_pb2 as pb

from .conftest import START, hours

if TYPE_CHECKING:
    from treadle.v1.features_pb2_grpc import FeatureServiceAsyncStub

HOUR = 3_600_000_000
ORIGINS = ["EWR", "JFK", "LGA"]


async def ask(stub: "FeatureServiceAsyncStub", now_hours: int) -> dict[str, Any]:
    answer = await stub.GetOnlineFeatures(
        pb.GetOnlineFeaturesRequest(
            feature_service="flights",
            entities=[encode(Column.of("origin", ORIGINS))],
            context=[encode(Column.of("distance", [1.0, 2.0, 3.0]))],
            now_micros=to_micros(START) + now_hours * HOUR,
        )
    )
    return {each.column.name: each for each in answer.features}


@pytest.mark.parametrize("until", [0, 1, 2, 3, 9])
async def test_online_is_offline_at_the_moment_of_materializing(
    stub: "FeatureServiceAsyncStub", view: FeatureView, service: FeatureService, until: int
) -> None:
    await stub.ApplyFeatures(codec.to_apply_request(Definitions((view,), (service,))))
    moment = hours(until)
    await materialize(view, stub, until=moment)
    online = await ask(stub, until)
    rows = pa.table({"origin": ORIGINS, "event_timestamp": [moment] * 3, "distance": [1.0, 2.0, 3.0]})
    offline = point_in_time_join(rows, service, [view], provenance=True)
    for name, feature in online.items():
        found = decode(feature.column)
        nulls = np.zeros(3, bool) if found.nulls is None else found.nulls
        assert nulls.tolist() == offline[name].is_null().to_pylist()
        expected = [each for each in offline[name].to_pylist() if each is not None]
        assert [str(each) for each in found.values[~nulls].tolist()] == [str(each) for each in expected]
        ages = [None if np.isnan(each) else each for each in feature.ages_seconds]
        assert ages == offline[f"{name}__age"].to_pylist()


async def test_materializing_is_idempotent_and_older_rows_are_outdated(
    stub: "FeatureServiceAsyncStub", view: FeatureView, service: FeatureService
) -> None:
    await stub.ApplyFeatures(codec.to_apply_request(Definitions((view,), (service,))))
    seen: list[tuple[int, int]] = []
    assert await materialize(
        view, stub, progress=lambda done, total: seen.append((done, total))
    ) == MaterializationResult(2, 2, 0)
    assert seen == [(2, 2)]
    assert await materialize(view, stub) == MaterializationResult(2, 2, 0)
    earlier = hours(1)
    assert await materialize(view, stub, until=earlier) == MaterializationResult(2, 1, 1)
    assert await materialize(view, stub, until=START) == MaterializationResult(0, 0, 0)
    (fresh,) = (await stub.GetFreshness(pb.GetFreshnessRequest())).views
    assert (fresh.entities, fresh.newest_event_micros) == (2, to_micros(START) + 3 * HOUR)


async def test_more_rows_than_a_message_holds(stub: "FeatureServiceAsyncStub", tmp_path: Path) -> None:
    rows = ROWS_PER_MESSAGE * 2 + 1
    table = pa.table({"n": np.arange(rows), "known_at": pa.array([START] * rows), "x": np.arange(rows) / 2})
    pq.write_table(table, tmp_path / "many.parquet")
    source = Source(str(tmp_path / "many.parquet"), "known_at")
    many = FeatureView("many", [Entity("n", "INT64")], source, [Field("x", "FP64")])
    await stub.ApplyFeatures(codec.to_apply_request(Definitions((many,))))
    seen: list[int] = []
    assert await materialize(many, stub, progress=lambda done, _: seen.append(done)) == MaterializationResult(
        rows, rows, 0
    )
    assert seen == [ROWS_PER_MESSAGE, ROWS_PER_MESSAGE * 2, rows]


async def test_views_that_cannot_be_materialized(stub: "FeatureServiceAsyncStub", view: FeatureView) -> None:
    with pytest.raises(NotFound, match="no feature view 'weather'"):
        await materialize(view, stub)
    pushed = FeatureView("pushed", [Entity("n", "INT64")], None, [Field("x", "FP64")])
    with pytest.raises(InvalidInput, match="fed by pushes alone"):
        await materialize(pushed, stub)
    with pytest.raises(InvalidInput, match="needs a time zone"):
        await materialize(view, stub, until=datetime(2013, 1, 1))  # noqa: DTZ001  # the fault under test


def test_the_last_row_of_equal_event_times_is_used(tmp_path: Path) -> None:
    for at, winds in enumerate([[1.0, 2.0], [3.0, -0.0]]):
        table = pa.table({"n": [7, 7], "known_at": pa.array([START] * 2), "x": winds})
        pq.write_table(table, tmp_path / f"{at}.parquet")
    view = FeatureView("v", [Entity("n", "INT64")], Source(str(tmp_path), "known_at"), [Field("x", "FP64")])
    (x,) = latest_rows(view)["x"].to_pylist()
    assert str(x) == "-0.0"


def test_moments_are_exact() -> None:
    assert to_micros(datetime.fromisoformat("2013-10-01T00:00:00.000001+02:00")) == 1_380_578_400_000_001
    assert to_micros(datetime.fromisoformat("1969-12-31T23:59:59.999999+00:00")) == -1
