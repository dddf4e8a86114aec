"""Requests joined into a batch and cut out of it again: each has the columns that it has alone."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from opentelemetry.trace import INVALID_SPAN_CONTEXT

from treadle.core.column import Array, Column
from treadle.core.dtypes import NUMPY_DTYPES, numpy_dtype
from treadle.core.errors import Cancelled, Internal, InvalidInput, Unavailable
from treadle.core.model_ref import ModelRef
from treadle.gateway.pipeline.batch.feature_batch import FeatureBatch, FeatureValues
from treadle.gateway.pipeline.batch.request import PARTS, ColumnHeader, PredictionRequest, Schema
from treadle.gateway.pipeline.batch.request_batch import PendingRequest, RequestBatch
from treadle.gateway.policy.deployments import ServedDeployment, ServedShare
from treadle.rpc.context import RequestContext

from .core import decoded_request

DEPLOYMENT = ServedDeployment("d", (ServedShare(ModelRef("m", 1), 100),))
MOST_ROWS = 4


def pending(request: PredictionRequest) -> PendingRequest:
    return PendingRequest(request, RequestContext(), 0.0, 1.0, INVALID_SPAN_CONTEXT, request.rows)


@dataclass
class Sent:
    """A request, and its columns as arrays."""

    pending: PendingRequest
    arrays: list[Array]


def headers() -> st.SearchStrategy[ColumnHeader]:
    shapes = st.sampled_from([(), (), (), (1,), (2,), (2, 3)])
    return st.builds(
        ColumnHeader, st.sampled_from(PARTS), st.sampled_from("abcd"), st.sampled_from(list(NUMPY_DTYPES)), shapes
    )


schemas = st.lists(headers(), min_size=1, max_size=5, unique_by=lambda header: header[:2]).map(tuple)


@st.composite
def requests(draw: st.DrawFn, schema: Schema) -> Sent:
    """One to four rows; columns without a row shape as Python's own values or as arrays, as entry points give them."""
    rows = draw(st.integers(1, MOST_ROWS))
    arrays, values, nulls = [], [], {}
    for position, (_, _, dtype, row_shape) in enumerate(schema):
        elements = {"STRING": st.text(max_size=3), "BYTES": st.binary(max_size=3)}.get(dtype)
        array = draw(hnp.arrays(numpy_dtype(dtype), (rows, *row_shape), elements=elements))
        is_plain = not row_shape and dtype != "TIMESTAMP" and draw(st.booleans())
        arrays.append(array)
        values.append(array.tolist() if is_plain else array)
        if draw(st.booleans()):
            nulls[position] = draw(hnp.arrays(bool, rows))
    return Sent(pending(PredictionRequest("d", schema, values, nulls)), arrays)


sent_together = schemas.flatmap(lambda schema: st.lists(requests(schema), min_size=1, max_size=8))


def same_array(one: Array, other: Array) -> bool:
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    return one.tolist() == other.tolist() if one.dtype == object else one.tobytes() == other.tobytes()


def same_nulls(one: NDArray[np.bool_] | None, other: NDArray[np.bool_] | None, rows: int) -> bool:
    none = np.zeros(rows, bool)
    return np.array_equal(none if one is None else one, none if other is None else other)


def same_column(one: Column, other: Column) -> bool:
    return (
        (one.name, one.dtype) == (other.name, other.dtype)
        and same_array(one.values, other.values)
        and same_nulls(one.nulls, other.nulls, one.rows)
    )


def assert_same_columns(one: RequestBatch, other: RequestBatch) -> None:
    assert one.requests == other.requests
    assert list(one.starts) == list(other.starts)
    for part in PARTS:
        assert list(one.columns[part]) == list(other.columns[part])
        for name, column in one.columns[part].items():
            assert same_column(column, other.columns[part][name])


def join(sent: Sequence[Sent]) -> RequestBatch:
    return RequestBatch.join(DEPLOYMENT, [each.pending for each in sent])


@settings(deadline=None)
@given(sent_together)
def test_a_request_has_the_values_and_nulls_in_a_batch_that_it_was_sent_with(sent: list[Sent]) -> None:
    batch = join(sent)
    assert batch.rows == sum(each.pending.rows for each in sent)
    for index, each in enumerate(sent):
        rows = slice(batch.starts[index], batch.starts[index + 1])
        for position, (header, array) in enumerate(zip(each.pending.request.schema, each.arrays, strict=True)):
            column = batch.columns[header.part][header.name].take(rows)
            assert (column.name, column.dtype) == (header.name, header.dtype)
            assert column.values.dtype == numpy_dtype(header.dtype)
            assert same_array(column.values, array)
            assert same_nulls(column.nulls, each.pending.request.nulls.get(position), column.rows)


@settings(deadline=None)
@given(sent_together)
def test_a_request_taken_out_of_a_batch_is_the_batch_of_it_alone(sent: list[Sent]) -> None:
    batch = join(sent)
    for index, each in enumerate(sent):
        assert_same_columns(batch.take([index]), join([each]))


@settings(deadline=None)
@given(sent_together, st.data())
def test_some_requests_taken_in_any_order_are_those_requests_joined(sent: list[Sent], data: st.DataObject) -> None:
    indices = data.draw(st.lists(st.integers(0, len(sent) - 1), unique=True, min_size=1))
    taken = join(sent).take(indices)
    assert_same_columns(taken, join([sent[index] for index in indices]))
    again = data.draw(st.permutations(range(len(indices))))
    assert_same_columns(taken.take(again), join([sent[indices[index]] for index in again]))


def column(name: str, rows: NDArray[np.int64]) -> Column:
    return Column(name, "INT64", rows, rows % 3 == 0)


def features(rows: NDArray[np.int64]) -> FeatureBatch:
    return FeatureBatch({"f": FeatureValues(column("f", rows), (rows % 4 + 1).astype(np.uint8), rows / 2)}, len(rows))


ERROR = Unavailable("away")


def filled(batch: RequestBatch, rows: NDArray[np.int64]) -> RequestBatch:
    """The batch as later stages see it; what they set of a row follows from the number of the row."""
    return replace(
        batch,
        lookups={"s": features(rows), "t": features(rows * 7), "broken": ERROR},
        deadlines=[float(rows[start]) for start in batch.starts[:-1]],
        features=features(rows * 5),
        inputs={"x": np.stack([rows, rows], axis=1), "name": rows.astype(str).astype(object)},
        stale={"f": rows % 2 == 0},
        outputs=[column("y", rows * 3), column("z", rows * 4)],
    )


def plain(batch: RequestBatch) -> dict[str, Any]:
    """What later stages have set, as Python's own values."""

    def of_column(each: Column) -> Any:
        return each.name, each.dtype, each.values.tolist(), None if each.nulls is None else each.nulls.tolist()

    def of_features(found: Any) -> Any:
        if not isinstance(found, FeatureBatch):
            return found
        return found.rows, {
            name: (of_column(each.column), each.statuses.tolist(), each.ages_seconds.tolist())
            for name, each in found.features.items()
        }

    return {
        "lookups": {name: of_features(found) for name, found in batch.lookups.items()},
        "deadlines": list(batch.deadlines),
        "features": of_features(batch.features),
        "inputs": {name: array.tolist() for name, array in batch.inputs.items()},
        "stale": {name: mask.tolist() for name, mask in batch.stale.items()},
        "outputs": [of_column(each) for each in batch.outputs],
    }


def numbered(counts: Sequence[int]) -> RequestBatch:
    """A batch of requests with so many rows each, whose column x holds the numbers of the rows."""
    start, found = 0, []
    for count in counts:
        column = Column.of("x", np.arange(start, start + count))
        found.append(pending(decoded_request("d", context=[column])))
        start += count
    return RequestBatch.join(DEPLOYMENT, found)


@given(st.lists(st.integers(1, MOST_ROWS), min_size=1, max_size=6), st.data())
def test_what_the_stages_have_set_is_cut_as_the_columns_are(counts: list[int], data: st.DataObject) -> None:
    batch = numbered(counts)
    indices = data.draw(st.lists(st.integers(0, len(counts) - 1), unique=True, min_size=1))
    taken = filled(batch, np.arange(batch.rows)).take(indices)
    assert plain(taken) == plain(filled(batch.take(indices), taken.context["x"].values))


@pytest.mark.parametrize("counts", [[1, 1], [2, 3]])
def test_none_of_the_requests_are_a_batch_without_rows(counts: list[int]) -> None:
    batch = numbered(counts)
    taken = filled(batch, np.arange(batch.rows)).take([])
    assert taken.requests == []
    assert taken.rows == 0
    assert taken.context["x"].rows == 0


def test_a_batch_and_what_is_taken_of_it_share_their_failures() -> None:
    batch = numbered([1, 2, 3])
    batch.take([1, 2]).fail(0, ERROR)
    assert batch.failures == {batch.requests[1]: ERROR}


def test_a_request_that_failed_keeps_its_reason_when_the_step_fails_for_all() -> None:
    batch, refused = numbered([1, 2, 3]), InvalidInput("row 0 is refused")
    batch.fail(1, refused)
    batch.fail_all(ERROR)
    assert list(map(batch.failures.get, batch.requests)) == [ERROR, refused, ERROR]


def test_a_request_has_one_outcome_the_first() -> None:
    (one,) = numbered([1]).requests
    answer: Any = "the answer"
    one.succeed(answer)
    one.fail(Internal("too late"))
    assert one.is_done
    assert one.result() == answer
    (other,) = numbered([1]).requests
    other.fail(ERROR)
    other.succeed(answer)
    with pytest.raises(Unavailable, match="away") as caught:
        other.result()
    assert caught.value is not ERROR, "an error of a batch is raised in several tasks"


def test_a_request_of_a_cancelled_batch_may_be_tried_again() -> None:
    (one,) = numbered([1]).requests
    one.fail(KeyboardInterrupt())
    assert isinstance(one.outcome, Unavailable)
    assert not isinstance(one.outcome, Cancelled)
