"""A small project with two views and a transform, and a features service that serves it."""

import itertools
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from treadle.features.service import FeatureSettings, open_service
from treadle.observability.telemetry.telemetry import Telemetry
from treadle.rpc.app.serving import running
from treadle.rpc.client.channel import Channel
from treadle.v1 import features_pb2_grpc

PROJECT = '''
"""Weather and aircraft delays, for tests."""
from datetime import timedelta

import numpy as np

from treadle.features import Columns, Entity, FeatureService, FeatureView, Field, Source, transform

origin = Entity("origin", "STRING")
aircraft = Entity("aircraft", "INT64")

weather = FeatureView(
    "weather", [origin], Source("weather.parquet", "known_at"),
    [Field("wind", "FP64", unit="knots"), Field("sky", "STRING"), Field("gusts", "INT32")],
    freshness=timedelta(hours=2), owner="ops",
)
delays = FeatureView(
    "delays", [aircraft, origin], Source("delays.parquet", "known_at"),
    [Field("mean_delay", "FP32", unit="minutes"), Field("late", "BOOL", sensitivity="internal")],
)


@transform(inputs=["weather__wind", "weather__gusts", "distance"], outputs=[Field("push", "FP64")])
def push_of_wind(columns: Columns) -> Columns:
    return {"push": columns["weather__wind"] * np.nan_to_num(columns["weather__gusts"], nan=1.0) / columns["distance"]}


flights = FeatureService(
    "flights", [weather, delays["mean_delay"]], context=[Field("distance", "FP64", unit="km")],
    transforms=[push_of_wind],
)
'''
Write = Callable[..., Path]
_numbers = itertools.count()


@pytest.fixture
def write_project(tmp_path: Path) -> Iterator[Write]:
    """Writes a user module under a unique name, and removes it from `sys.modules` afterwards."""
    before = set(sys.modules), list(sys.path)
    folder = tmp_path / "project"
    folder.mkdir()

    def write(text: str = PROJECT, path: Path | None = None) -> Path:
        path = path or folder / f"features_of_test_{next(_numbers)}.py"
        path.write_text(text)
        return path

    yield write
    for name in set(sys.modules) - before[0]:
        if name.startswith("features_of_test_"):
            del sys.modules[name]
    sys.path[:] = before[1]


@pytest.fixture
def serve(tmp_path: Path) -> Callable[..., object]:
    """`async with serve(max_rows=10) as stub`: a real features service; its data survives a second `serve`."""

    @asynccontextmanager
    async def start(**settings: Any) -> "AsyncIterator[features_pb2_grpc.FeatureServiceAsyncStub]":
        telemetry = Telemetry.off()
        async with (
            running(open_service, FeatureSettings(**settings), home=tmp_path / "home", telemetry=telemetry) as address,
            Channel(address, service="features", telemetry=telemetry) as channel,
        ):
            yield features_pb2_grpc.FeatureServiceStub(channel)

    return start
