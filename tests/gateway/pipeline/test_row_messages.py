"""What is made for a whole batch at once is, row by row, what would be made for each request alone."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from treadle.core.column import Column
from treadle.core.dtypes import NUMPY_DTYPES
from treadle.core.errors import InvalidInput
from treadle.core.model_ref import ModelRef
from treadle.gateway.pipeline import row_messages
from treadle.gateway.pipeline.assembly import CannotAnswer, from_columns
from treadle.gateway.pipeline.feature_batch import FeatureBatch, Features, FeatureValues
from treadle.gateway.pipeline.request import Ask
from treadle.gateway.policy.deployments import ServedVersion
from treadle.plugins.tensor_spec import TensorSpec
from treadle.plugins.tensors import Signature
from treadle.rpc.codec.columns import decode
from treadle.v1 import prediction_pb2, types_pb2

FIELD = prediction_pb2.PredictResponse.FEATURES_FIELD_NUMBER
ROWS = 5


@st.composite
def feature(draw: st.DrawFn, name: str, dtypes: list[str]) -> FeatureValues:
    dtype = draw(st.sampled_from(dtypes))
    numbers = draw(st.lists(st.integers(0, 1), min_size=ROWS, max_size=ROWS))
    if dtype in {"STRING", "BYTES"}:
        values = np.empty(ROWS, object)
        values[:] = ["ä" * number if dtype == "STRING" else bytes(number) for number in numbers]
    else:
        values = np.array(numbers).astype(NUMPY_DTYPES[dtype])
    if dtype == "FP64" and draw(st.booleans()):
        values = np.stack([values, values], axis=1)
    elif dtype.startswith("FP"):
        values[draw(st.lists(st.integers(0, ROWS - 1), max_size=1))] = np.nan
    nulls = draw(st.one_of(st.none(), st.lists(st.booleans(), min_size=ROWS, max_size=ROWS).map(np.array)))
    statuses = draw(st.lists(st.integers(1, 4), min_size=ROWS, max_size=ROWS))
    if draw(st.booleans()):
        nulls, statuses = None, [1] * ROWS
    ages = draw(st.lists(st.floats(), min_size=ROWS, max_size=ROWS))
    return FeatureValues(Column(name, dtype, values, nulls), np.array(statuses, np.uint8), np.array(ages))


@st.composite
def batch(draw: st.DrawFn, dtypes: list[str]) -> FeatureBatch:
    names = draw(st.lists(st.sampled_from(["a", "view__b", "ü" * 70, "d"]), unique=True, min_size=1))
    sent = Column.of("key", [f"k{row}" for row in range(ROWS)])
    return FeatureBatch({name: draw(feature(name, dtypes)) for name in names}, [sent], ROWS)


def decoded(data: bytes) -> list[types_pb2.FeatureColumn]:
    return sorted(prediction_pb2.PredictResponse.FromString(data).features, key=lambda pb: pb.column.name)


def own(found: FeatureBatch, row: int) -> Iterator[FeatureValues]:
    mine = Features(found, row, row + 1)
    return (mine[name] for name in sorted(mine))


def check(pb: types_pb2.FeatureColumn, feature: FeatureValues) -> None:
    assert pb.column.name == feature.column.name
    assert list(pb.statuses) == feature.statuses.tolist()
    assert np.array(pb.ages_seconds).tobytes() == feature.ages_seconds.tobytes()


@given(batch(list(NUMPY_DTYPES)))
def test_each_row_has_its_own_statuses_and_ages(found: FeatureBatch) -> None:
    for row, data in enumerate(row_messages.bare(found, FIELD)):
        for pb, feature in zip(decoded(data), own(found, row), strict=True):
            check(pb, feature)
            assert pb.column.WhichOneof("values") is None


@given(batch(list(NUMPY_DTYPES)), st.sets(st.sampled_from(["a", "d"])).map(frozenset))
def test_each_row_has_its_own_values_but_for_those_hidden(found: FeatureBatch, hidden: frozenset[str]) -> None:
    rows = row_messages.with_values(found, FIELD, hidden)
    if not found.features.keys() - hidden:
        assert rows == []
    for row, data in enumerate(rows):
        shown = [feature for feature in own(found, row) if feature.column.name not in hidden]
        for pb, feature in zip(decoded(data), shown, strict=True):
            check(pb, feature)
            column = decode(pb.column)
            null = feature.column.nulls is not None and bool(feature.column.nulls[0])
            assert (column.nulls is not None) == null
            assert column.dtype == feature.column.dtype
            assert null or np.array_equal(column.values, feature.column.values, equal_nan=column.dtype[:2] == "FP")


def signature(allow_nan: bool) -> Signature:
    inputs = (
        TensorSpec("x", "FP32", (-1, 2), ("a", "d"), allow_nan=allow_nan),
        TensorSpec("b", "FP64", (-1,), allow_nan=allow_nan),
    )
    return Signature(inputs, (TensorSpec("y", "FP64", (-1,)),))


@settings(deadline=None)
@given(st.data(), st.booleans(), st.booleans(), st.booleans())
def test_inputs_made_for_a_batch_are_those_made_alone(
    data: st.DataObject, allow_nan: bool, strict: bool, overrides: bool
) -> None:
    numeric = ["FP64", "FP32", "INT64", "BOOL", "STRING"] if data.draw(st.booleans()) else ["FP32", "INT32"]
    features = {name: data.draw(feature(name, numeric)) for name in ("a", "d", "b")}
    sent = Column.of("key", [f"k{row}" for row in range(ROWS)])
    found = FeatureBatch(features, [sent], ROWS)
    version = ServedVersion(ModelRef("m", 1), signature(allow_nan), "f")
    for row in range(ROWS):
        context = {"d": Column.of("d", [7.0])} if overrides and row % 2 else {}
        ask = Ask("d", {"key": sent.take(slice(row, row + 1))}, context)
        mine = Features(found, row, row + 1)
        alone = Features.of(dict(mine), [], 1)
        assert outcome(version, ask, mine, strict) == outcome(version, ask, alone, strict)


def outcome(version: ServedVersion, ask: Ask, features: Features, strict: bool) -> Any:
    try:
        made = from_columns(version, ask, features, strict=strict)
    except (CannotAnswer, InvalidInput) as error:
        return type(error), error.message
    return {name: (tensor.dtype.str, tensor.shape, tensor.tobytes()) for name, tensor in made.inputs.items()}, (
        sorted(made.stale)
    )
