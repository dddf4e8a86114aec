"""The features service over real gRPC."""

import asyncio
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from treadle.core.column import Column
from treadle.core.errors import FailedPrecondition, InvalidInput, NotFound, TreadleError
from treadle.features import load_definitions
from treadle.features.definition_codec import to_apply_request
from treadle.features.service import FeatureSettings, open_service
from treadle.observability.telemetry.telemetry import Telemetry
from treadle.rpc.app.serving import running
from treadle.rpc.client.channel import Channel
from treadle.rpc.codec.columns import decode
from treadle.v1 import features_pb2 as pb
from treadle.v1 import types_pb2
from treadle.v1.features_pb2_grpc import FeatureServiceStub

from ..conftest import columns

HOUR = 3_600_000_000
PRESENT, NULL, MISSING, STALE = (
    types_pb2.FEATURE_STATUS_PRESENT,
    types_pb2.FEATURE_STATUS_NULL,
    types_pb2.FEATURE_STATUS_MISSING,
    types_pb2.FEATURE_STATUS_STALE,
)


def weather(origins: Sequence[str], winds: Sequence[Any], at: Sequence[int], **more: Any) -> pb.PushRequest:
    table: dict[str, Any] = {
        "origin": list(origins),
        "wind": Column.of("wind", winds, dtype="FP64"),
        "sky": ["clear"] * len(origins),
        "gusts": Column.of("gusts", [3] * len(origins), dtype="INT32"),
        **more,
    }
    return pb.PushRequest(view="weather", columns=columns(**table), event_micros=at)


def ask(origins: Sequence[str], now: int, **more: Any) -> pb.GetOnlineFeaturesRequest:
    rows = len(origins)
    request = {
        "feature_service": "flights",
        "entities": columns(origin=list(origins), aircraft=Column.of("aircraft", [7] * rows, dtype="INT64")),
        "context": columns(distance=Column.of("distance", [2.0] * rows)),
        "now_micros": now,
        **more,
    }
    return pb.GetOnlineFeaturesRequest(**request)


def by_name(answer: pb.GetOnlineFeaturesResponse) -> dict[str, types_pb2.FeatureColumn]:
    return {each.column.name: each for each in answer.features}


async def test_values_come_back_with_status_and_age(serve: Any, write_project: Any) -> None:
    async with serve() as stub:
        await stub.ApplyFeatures(to_apply_request(load_definitions(write_project())))
        pushed = await stub.Push(
            [
                weather(["EWR", "JFK"], [10.0, None], [1 * HOUR, 3 * HOUR]),
                weather(["EWR"], [8.0], [0]),
            ]
        )
        assert (pushed.rows_written, pushed.rows_outdated) == (2, 1)

        answer = by_name(await stub.GetOnlineFeatures(ask(["EWR", "JFK", "LGA"], 4 * HOUR)))

    assert list(answer) == [
        "weather__wind", "weather__sky", "weather__gusts", "delays__mean_delay", "distance", "push"
    ]  # fmt: skip
    wind = answer["weather__wind"]
    assert list(wind.statuses) == [STALE, NULL, MISSING]
    assert decode(wind.column).values[0] == 10.0
    assert list(wind.column.null_rows) == [1, 2]
    assert wind.ages_seconds[:2] == [3 * 3600.0, 3600.0]
    assert math.isnan(wind.ages_seconds[2])
    assert list(answer["weather__sky"].statuses) == [STALE, PRESENT, MISSING]
    assert decode(answer["weather__sky"].column).values.tolist() == ["clear", "clear", ""]
    assert list(answer["delays__mean_delay"].statuses) == [MISSING] * 3
    assert list(answer["distance"].ages_seconds) == [0.0] * 3
    push = answer["push"]
    assert list(push.statuses) == [STALE, NULL, NULL]
    assert decode(push.column).values[0] == 15.0
    assert list(push.ages_seconds) == [3 * 3600.0, 3600.0, 0.0]


async def test_only_the_outputs_asked_for(serve: Any, write_project: Any) -> None:
    async with serve() as stub:
        await stub.ApplyFeatures(to_apply_request(load_definitions(write_project())))
        request = ask(["EWR"], HOUR, outputs=["weather__sky"], context=[])
        assert list(by_name(await stub.GetOnlineFeatures(request))) == ["weather__sky"]
        del request.entities[1]  # the aircraft is needed by the other view alone
        assert list(by_name(await stub.GetOnlineFeatures(request))) == ["weather__sky"]
        request.outputs[:] = ["weather__ski"]
        with pytest.raises(InvalidInput, match="weather__sky"):
            await stub.GetOnlineFeatures(request)


async def test_definitions_and_values_survive_a_restart(serve: Any, write_project: Any) -> None:
    definitions = load_definitions(write_project())
    async with serve() as stub:
        await stub.ApplyFeatures(to_apply_request(definitions))
        await stub.Push([weather(["EWR"], [10.0], [HOUR])])
    async with serve() as stub:
        answer = by_name(await stub.GetOnlineFeatures(ask(["EWR"], HOUR)))
        assert decode(answer["push"].column).values[0] == 15.0
        listed = await stub.ListFeatureServices(pb.ListFeatureServicesRequest())
        assert [each.name for each in listed.services] == ["flights"]
        assert [each.name for each in listed.views] == ["weather", "delays"]
        again = await stub.ApplyFeatures(to_apply_request(definitions))
        assert {each.kind for each in again.changes} == {pb.FeatureChange.KIND_UNCHANGED}


async def test_values_of_sensitive_columns_are_withheld_from_telemetry(write_project: Any, tmp_path: Path) -> None:
    definitions = load_definitions(write_project())
    for start in ("applied", "found at start"):
        telemetry = Telemetry.off("features")
        serving = running(open_service, FeatureSettings(), home=tmp_path / "home", telemetry=telemetry)
        async with serving as address, Channel(address, service="features", telemetry=telemetry) as channel:
            if start == "applied":
                assert not telemetry.redactor.withholds("late")
                await FeatureServiceStub(channel).ApplyFeatures(to_apply_request(definitions))
            assert telemetry.redactor.withholds("late")
            assert telemetry.redactor.withholds("delays__late")
            assert not telemetry.redactor.withholds("mean_delay")


async def test_definitions_are_listed_as_they_were_applied(serve: Any, write_project: Any) -> None:
    applied = to_apply_request(load_definitions(write_project()))
    async with serve() as stub:
        await stub.ApplyFeatures(applied)
        assert (await stub.ListFeatureViews(pb.ListFeatureViewsRequest())).views == applied.views
        services = await stub.ListFeatureServices(pb.ListFeatureServicesRequest(names=["flights"]))
        assert {view.name for view in services.views} == {"weather", "delays"}
        with pytest.raises(NotFound, match="no feature service 'fligths'; did you mean 'flights'"):
            await stub.ListFeatureServices(pb.ListFeatureServicesRequest(names=["fligths"]))


async def test_unknown_service_suggests_similar_names(serve: Any, write_project: Any) -> None:
    async with serve() as stub:
        await stub.ApplyFeatures(to_apply_request(load_definitions(write_project())))
        request = ask(["EWR"], HOUR, feature_service="flight")
        with pytest.raises(NotFound, match="did you mean 'flights'"):
            await stub.GetOnlineFeatures(request)


async def test_freshness(serve: Any, write_project: Any) -> None:
    async with serve() as stub:
        await stub.ApplyFeatures(to_apply_request(load_definitions(write_project())))
        await stub.Push([weather(["EWR", "JFK"], [1.0, 2.0], [HOUR, 2 * HOUR])])
        answer = await stub.GetFreshness(pb.GetFreshnessRequest(now_micros=3 * HOUR))
        weather_view, delays_view = answer.views
        assert (weather_view.entities, weather_view.newest_event_micros, weather_view.age_seconds) == (
            2,
            2 * HOUR,
            3600,
        )
        assert weather_view.fresh
        assert weather_view.last_write_micros > 0
        assert not delays_view.fresh
        assert math.isnan(delays_view.age_seconds)
        late = await stub.GetFreshness(pb.GetFreshnessRequest(views=["weather"], now_micros=5 * HOUR))
        assert [each.fresh for each in late.views] == [False]
        with pytest.raises(NotFound, match="weather"):
            await stub.GetFreshness(pb.GetFreshnessRequest(views=["wether"]))


async def test_lookups_go_on_while_definitions_change(serve: Any, write_project: Any) -> None:
    definitions = load_definitions(write_project())
    views = tuple(replace(each, owner="changed") for each in definitions.views)
    versions = [to_apply_request(definitions), to_apply_request(replace(definitions, views=views))]
    async with serve() as stub:
        await stub.ApplyFeatures(versions[0])
        await stub.Push([weather(["EWR"], [10.0], [HOUR])])

        async def change() -> None:
            for at in range(1, 8):
                await stub.ApplyFeatures(versions[at % 2])

        changing = asyncio.create_task(change())
        asked = 0
        while asked < 8 or not changing.done():
            answer = by_name(await stub.GetOnlineFeatures(ask(["EWR"], HOUR)))
            assert decode(answer["push"].column).values[0] == 15.0
            asked += 1
        await changing


async def test_a_field_that_is_new_is_missing_until_it_is_pushed(serve: Any, write_project: Any) -> None:
    path = write_project()
    async with serve() as stub:
        await stub.ApplyFeatures(to_apply_request(load_definitions(path)))
        await stub.Push([weather(["EWR"], [10.0], [HOUR])])
        text = path.read_text().replace('Field("sky", "STRING"),', 'Field("sky", "STRING"), Field("rain", "FP32"),')
        await stub.ApplyFeatures(to_apply_request(load_definitions(write_project(text, path))))
        answer = by_name(await stub.GetOnlineFeatures(ask(["EWR"], HOUR)))
        assert list(answer["weather__rain"].statuses) == [MISSING]
        assert list(answer["weather__wind"].statuses) == [PRESENT]
        rain = Column.of("rain", [0.5], dtype="FP32")
        await stub.Push([weather(["EWR"], [11.0], [HOUR], rain=rain)])
        answer = by_name(await stub.GetOnlineFeatures(ask(["EWR"], HOUR)))
        assert list(answer["weather__rain"].statuses) == [PRESENT]


async def test_services_whose_code_is_missing_fail_with_the_reason(serve: Any, write_project: Any) -> None:
    path = write_project()
    plain = path.read_text() + '\nplain = FeatureService("plain", [weather])\n'
    write_project(plain, path)
    async with serve() as stub:
        await stub.ApplyFeatures(to_apply_request(load_definitions(path)))
    path.unlink()
    async with serve() as stub:
        with pytest.raises(FailedPrecondition, match="'flights' is out of service"):
            await stub.GetOnlineFeatures(ask(["EWR"], HOUR))
        request = ask(["EWR"], HOUR, feature_service="plain", context=[])
        del request.entities[1]
        assert len((await stub.GetOnlineFeatures(request)).features) == 3


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"map_mib": 0}, InvalidInput, "map_mib must be a whole number, 1 to"),
        ({"max_rows": -1}, InvalidInput, "max_rows must be a whole number, 1 to"),
        ({"store": "lmbd"}, NotFound, "lmbd"),
        ({"store_options": "host"}, InvalidInput, "name=value"),
        ({"store_options": "host=here"}, InvalidInput, "no option 'host'; it has: map_mib"),
    ],
)
async def test_invalid_settings(serve: Any, settings: Any, error: type[TreadleError], message: str) -> None:
    with pytest.raises(error, match=message):
        async with serve(**settings):
            raise AssertionError("it must not start")
