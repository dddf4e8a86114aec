"""A features service on a real port, and a view with history in Parquet."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import pytest_asyncio

from treadle.features import Entity, FeatureService, FeatureView, Field, Source
from treadle.features.service import FeatureSettings, open_service
from treadle.observability.telemetry.telemetry import Telemetry
from treadle.rpc.app.serving import running
from treadle.rpc.client.channel import Channel
from treadle.v1 import features_pb2_grpc

if TYPE_CHECKING:
    from treadle.v1.features_pb2_grpc import FeatureServiceAsyncStub

START = datetime(2013, 1, 1, tzinfo=UTC)


def hours(count: float) -> datetime:
    """A moment so many hours after the history begins."""
    return START + timedelta(hours=count)


@pytest.fixture
def view(tmp_path: Path) -> FeatureView:
    table = pa.table(
        {
            "origin": ["EWR", "JFK", "EWR", None, "EWR", "LGA"],
            "known_at": pa.array([hours(1), hours(1), hours(2), hours(2), hours(3), None], pa.timestamp("us", "UTC")),
            "wind": [1.0, -0.0, None, 4.0, 5.0, 6.0],
            "half": pa.array([0.5, 65504.0, -0.0, 1.0, 2.0, 3.0], pa.float32()),
            "sky": ["clear", None, "rain", "snow", "fog", "sun"],
        }
    )
    pq.write_table(table, tmp_path / "weather.parquet")
    fields = [Field("wind", "FP64"), Field("half", "FP16"), Field("sky", "STRING")]
    return FeatureView(
        "weather", [Entity("origin", "STRING")], Source(str(tmp_path / "weather.parquet"), "known_at"), fields
    )


@pytest.fixture
def service(view: FeatureView) -> FeatureService:
    return FeatureService("flights", [view], context=[Field("distance", "FP64")])


@pytest_asyncio.fixture
async def stub(tmp_path: Path) -> "AsyncIterator[FeatureServiceAsyncStub]":
    telemetry = Telemetry.off()
    async with (
        running(open_service, FeatureSettings(map_mib=64), home=tmp_path / "home", telemetry=telemetry) as address,
        Channel(address, service="features", telemetry=telemetry) as channel,
    ):
        yield features_pb2_grpc.FeatureServiceStub(channel)
