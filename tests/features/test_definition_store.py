"""Definitions are applied atomically, persisted, and stay compatible with stored rows."""

import json
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from treadle.core.errors import DataLoss, FailedPrecondition, InvalidInput, NotFound
from treadle.features import Definitions, Entity, FeatureService, FeatureView, Field, Transform, load_definitions
from treadle.features.definition_diff import ChangeKind, DefinitionChange
from treadle.features.definition_store import DefinitionStore

from .conftest import Write

ORIGIN = Entity("origin", "STRING")
WEATHER = FeatureView("weather", [ORIGIN], None, [Field("wind", "FP64"), Field("sky", "STRING")], timedelta(hours=1))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "definitions.json"


def with_view(view: FeatureView) -> Definitions:
    return Definitions((view,))


def test_created_updated_unchanged(file: Path) -> None:
    store = DefinitionStore(file)
    assert store.apply(with_view(WEATHER)) == [DefinitionChange("view", "weather", ChangeKind.CREATED)]
    assert store.apply(with_view(WEATHER)) == [DefinitionChange("view", "weather", ChangeKind.UNCHANGED)]
    changed = replace(
        WEATHER,
        freshness=timedelta(hours=2),
        owner="ops",
        fields=[Field("sky", "STRING"), Field("wind", "FP64", unit="knots"), Field("gusts", "INT32")],
    )
    (change,) = store.apply(with_view(changed))
    assert change.kind is ChangeKind.UPDATED
    assert change.differences == (
        "fields.wind.unit: none -> knots",
        "fields.gusts: added",
        "fields: order -> sky, wind",
        "freshness_seconds: 3600 -> 7200",
        "owner: none -> ops",
    )
    assert DefinitionStore(file).snapshot.views == store.snapshot.views
    assert DefinitionStore(file).snapshot.layouts == store.snapshot.layouts


def test_a_dry_run_changes_nothing(file: Path) -> None:
    store = DefinitionStore(file)
    assert [each.kind for each in store.apply(with_view(WEATHER), dry_run=True)] == [ChangeKind.CREATED]
    assert not store.snapshot.views
    assert not file.exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"entities": [Entity("origin", "INT64")]}, "entities of view 'weather' cannot change"),
        ({"entities": [ORIGIN, Entity("hour", "INT64")]}, "entities of view 'weather' cannot change"),
        ({"fields": [Field("wind", "FP32")]}, "'wind' is stored as FP64 and cannot become FP32"),
    ],
)
def test_changes_that_would_misread_stored_rows_are_refused(file: Path, changes: Any, message: str) -> None:
    store = DefinitionStore(file)
    store.apply(with_view(WEATHER))
    with pytest.raises(FailedPrecondition, match=message):
        store.apply(with_view(replace(WEATHER, **changes)), dry_run=True)


def test_a_removed_field_cannot_return_with_another_type(file: Path) -> None:
    store = DefinitionStore(file)
    store.apply(with_view(WEATHER))
    store.apply(with_view(replace(WEATHER, fields=[Field("wind", "FP64")])))
    with pytest.raises(FailedPrecondition, match="'sky' is stored as STRING"):
        DefinitionStore(file).apply(with_view(replace(WEATHER, fields=[Field("sky", "BYTES")])))
    store.apply(with_view(WEATHER))
    assert len(store.snapshot.layouts["weather"]) == 2


def test_all_or_none(file: Path, write_project: Write) -> None:
    store = DefinitionStore(file)
    found = load_definitions(write_project())
    with pytest.raises(InvalidInput, match="unknown view 'weather'"):
        store.apply(Definitions(found.views[1:], found.services))
    assert not store.snapshot.views


def test_a_view_cannot_lose_a_field_that_a_service_needs(file: Path, write_project: Write) -> None:
    store = DefinitionStore(file)
    found = load_definitions(write_project())
    store.apply(found)
    before = store.snapshot
    with pytest.raises(InvalidInput, match="'push_of_wind' takes the unknown feature 'weather__gusts'"):
        store.apply(with_view(replace(found.views[0], fields=found.views[0].fields[:2])))
    assert store.snapshot is before


def test_code_that_differs_is_refused(file: Path, write_project: Write) -> None:
    path = write_project()
    found = load_definitions(path)
    store = DefinitionStore(file)
    write_project(path.read_text().replace("nan=1.0", "nan=2.0"), path)
    with pytest.raises(FailedPrecondition, match="differs from the source that was applied"):
        store.apply(found)


@pytest.mark.parametrize("function", ["shutil:rmtree", "os:system", "not_there_at_all:f"])
def test_only_marked_functions_can_be_named(file: Path, function: str) -> None:
    made = Transform("trick", function, ["weather__wind"], [Field("out", "FP64")])
    service = FeatureService("flights", [WEATHER], transforms=[made])
    with pytest.raises((FailedPrecondition, InvalidInput)):
        DefinitionStore(file).apply(Definitions((WEATHER,), (service,)))


def test_code_that_changed_while_the_service_was_down(file: Path, write_project: Write) -> None:
    path = write_project()
    DefinitionStore(file).apply(load_definitions(path))
    write_project(path.read_text().replace("nan=1.0", "nan=2.0"), path)
    store = DefinitionStore(file)  # starts all the same: its other services can be served
    with pytest.raises(FailedPrecondition, match=r"'flights' is out of service: .*apply again"):
        store.snapshot.plan("flights")
    store.apply(load_definitions(path))
    assert store.snapshot.plan("flights").outputs[-1] == "push"


def test_unknown_names(file: Path, write_project: Write) -> None:
    store = DefinitionStore(file)
    store.apply(load_definitions(write_project()))
    with pytest.raises(NotFound, match="did you mean 'weather'"):
        store.snapshot.view("whether")
    with pytest.raises(NotFound, match="did you mean 'flights'"):
        store.snapshot.plan("flihgts")


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"format": 2}', '{"format": 1, "definitions": {"vews": []}, "layouts": {}}']
)
def test_a_damaged_file_raises_data_loss(file: Path, content: str) -> None:
    file.write_text(content)
    with pytest.raises(DataLoss, match=r"definitions\.json"):
        DefinitionStore(file)


def test_an_interrupted_write_changes_nothing(file: Path) -> None:
    store = DefinitionStore(file)
    store.apply(with_view(WEATHER))
    file.with_suffix(".draft").write_text("half a")
    assert json.loads(file.read_text())["format"] == 1
    assert list(DefinitionStore(file).snapshot.views) == ["weather"]
