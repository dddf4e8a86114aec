"""Definitions validate themselves; errors say what to change."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from treadle.core.errors import InvalidInput
from treadle.features import Definitions, Entity, FeatureService, FeatureView, Field, Source, Transform, transform
from treadle.features import definition_codec as codec
from treadle.features.definitions import DTYPES, ENTITY_DTYPES
from treadle.features.lookup_plan import compile_plan
from treadle.features.names import check_name
from treadle.v1 import features_pb2 as pb

from ..conftest import modules_after

ORIGIN = Entity("origin", "STRING")
WEATHER = FeatureView("weather", [ORIGIN], None, [Field("wind", "FP64"), Field("gusts", "INT32")])
VIEWS = {"weather": WEATHER}


def plain(columns: Any) -> Any:
    return columns


def service(**changes: Any) -> FeatureService:
    return FeatureService(**{"name": "flights", "sets": [WEATHER], **changes})


def double(**changes: Any) -> Transform:
    given = {"name": "double", "function": "m:double", "inputs": ["weather__wind"], "outputs": [Field("twice", "FP64")]}
    return Transform(**{**given, **changes})


BAD_NAMES = ["", "a__b", "a_", "_a", "1a", "../up", "a/b", "a b", "a\0", "é", "x" * 64, "a\n", ".", "a.b", "C:x"]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_invalid_names(name: str) -> None:
    for make in (
        lambda: Entity(name, "STRING"),
        lambda: Field(name, "FP64"),
        lambda: FeatureView(name, [ORIGIN], None, [Field("a", "FP64")]),
        lambda: service(name=name),
        lambda: codec.view_from_proto(pb.FeatureView(name=name)),
    ):
        with pytest.raises(InvalidInput, match="not allowed"):
            make()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Field("wind", "FP46"), "did you mean 'FP64'"),
        (lambda: Field("wind", "fp64"), "did you mean 'FP64'"),
        (lambda: Entity("origin", "FP64"), "unfit dtype 'FP64'"),
        (lambda: Source("", "t"), "needs a path"),
        (lambda: FeatureView("v", [], None, [Field("a", "FP64")]), "at least one entity"),
        (lambda: FeatureView("v", [ORIGIN], None, []), "one entity and one field"),
        (lambda: FeatureView("v", [ORIGIN], None, [Field("origin", "FP64")]), "'origin' is there twice"),
        (lambda: FeatureView("v", [ORIGIN], None, [Field("a", "FP64")], timedelta(0)), "freshness must be positive"),
        (lambda: WEATHER["winds"], "no field 'winds'; did you mean 'wind'"),
        (lambda: WEATHER["wind", "wind"], "'wind' is there twice"),
        (lambda: service(sets=[]), "is empty"),
        (lambda: service(sets=[WEATHER, WEATHER["wind"]]), "view 'weather' is there twice"),
        (lambda: service(transforms=[plain]), "not marked with @transform"),
        (lambda: double(function="../m:f"), "must read 'package.module:function'"),
        (lambda: double(function="os"), "must read 'package.module:function'"),
        (lambda: double(inputs=[]), "at least one input"),
        (lambda: Definitions((WEATHER, WEATHER)), "view 'weather' is there twice"),
        (lambda: transform(inputs=["a"], outputs=[Field("b", "FP64")])(lambda columns: columns), "plain function"),
        (lambda: Definitions((WEATHER,)).view("wether"), "did you mean 'weather'"),
        (lambda: codec.view_from_proto(pb.FeatureView(name="v", freshness_seconds=-1)), "freshness_seconds"),
        (lambda: codec.view_from_proto(pb.FeatureView(name="v", freshness_seconds=float("nan"))), "freshness_seconds"),
        (
            lambda: codec.view_from_proto(pb.FeatureView(name="v", entities=[pb.Entity(name="e")])),
            "entity 'e': data type",
        ),
    ],
)
def test_contradictory_definitions(make: Callable[[], object], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        make()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"sets": [FeatureView("wether", [ORIGIN], None, [Field("a", "FP64")])]},
            "unknown view 'wether'; did you mean",
        ),
        ({"sets": [WEATHER["wind"]], "outputs": ["weather__gusts"]}, "unknown feature 'weather__gusts'"),
        ({"transforms": [double(inputs=["weather__win"])]}, "did you mean 'weather__wind'"),
        ({"transforms": [double(), double(name="again")]}, "output 'twice' is there twice"),
        ({"transforms": [double(), double(outputs=[Field("x", "FP64")])]}, "transform 'double' is there twice"),
        ({"context": [Field("origin", "STRING")]}, "request column 'origin' is there twice"),
    ],
)
def test_services_that_name_unknown_objects(changes: Any, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        compile_plan(service(**changes), VIEWS)


def test_one_entity_has_one_type() -> None:
    other = FeatureView("other", [Entity("origin", "INT64")], None, [Field("a", "FP64")])
    with pytest.raises(InvalidInput, match="'origin' is STRING in one view, INT64 in another"):
        compile_plan(service(sets=[WEATHER, other]), {**VIEWS, "other": other})


def test_a_narrowed_plan_reads_only_what_its_outputs_need() -> None:
    plan = compile_plan(service(context=[Field("km", "FP64")], transforms=[double()]), VIEWS)
    assert plan.outputs == ("weather__wind", "weather__gusts", "km", "twice")
    twice = plan.narrowed(["twice"])
    assert [each.features for each in twice.views] == [("weather__wind",)]
    assert twice.context == ()
    assert plan.narrowed(["km"]).views == ()


names = st.from_regex(r"[a-z]{1,8}", fullmatch=True)
words = st.text(max_size=6)
fields = st.builds(Field, names, st.sampled_from(DTYPES), words, words, words)


@st.composite
def views(draw: st.DrawFn) -> FeatureView:
    found = draw(st.lists(fields, min_size=2, max_size=6, unique_by=lambda each: each.name))
    entity = Entity(f"key_{found[0].name}", draw(st.sampled_from(ENTITY_DTYPES)), draw(words))
    source = draw(st.none() | st.builds(Source, names, names))
    freshness = draw(st.none() | st.timedeltas(timedelta(microseconds=1), timedelta(days=10_000)))
    return FeatureView(draw(names), [entity], source, found, freshness, draw(words), draw(words))


@given(views())
def test_views_survive_encoding(view: FeatureView) -> None:
    message = pb.FeatureView.FromString(codec.view_to_proto(view).SerializeToString())
    assert codec.view_from_proto(message) == view


def test_services_survive_encoding() -> None:
    made = service(
        context=[Field("km", "FP64", "km", "pii")], transforms=[double(source_digest="d")], outputs=["twice"]
    )
    message = pb.FeatureServiceSpec.FromString(codec.service_to_proto(made).SerializeToString())
    assert codec.service_from_proto(message) == made


@given(st.text(max_size=10))
def test_full_names_split_in_one_way(text: str) -> None:
    try:
        check_name(text, "field")
    except InvalidInput:
        return
    assert f"{text}__{text}".split("__") == [text, text]


@pytest.mark.parametrize("module", ["treadle.features", "treadle.features.service"])
def test_definitions_and_serving_import_no_heavy_packages(module: str) -> None:
    assert not modules_after(f"import {module}") & {"duckdb", "pyarrow", "pandas", "sklearn"}
