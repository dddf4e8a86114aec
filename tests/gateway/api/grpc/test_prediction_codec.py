"""Predictions on the wire: requests decode as their columns do, answers are the messages that protobuf would write."""

import math
from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from treadle.core.column import Column
from treadle.core.dtypes import NUMPY_DTYPES, numpy_dtype
from treadle.core.errors import InvalidInput
from treadle.core.model_ref import ModelRef
from treadle.gateway.api.grpc.prediction_codec import decode_request, encode_response
from treadle.gateway.pipeline.batch.feature_batch import MISSING, NULL, PRESENT, STALE, FeatureBatch, FeatureValues
from treadle.gateway.pipeline.batch.prediction import PredictionRecord, PredictionResult
from treadle.gateway.pipeline.batch.request import PARTS, PredictionRequest
from treadle.gateway.policy.deployments import ServedDeployment, ServedShare
from treadle.rpc.codec.columns import VALUE_FIELDS, decode, decode_all, encode, to_proto
from treadle.rpc.context import VERSION_HEADER
from treadle.v1 import types_pb2
from treadle.v1.prediction_pb2 import FeatureProvenance, PredictRequest, PredictResponse

DEPLOYMENT = ServedDeployment("d", (ServedShare(ModelRef("m", 1), 100),))


def same_values(one: Any, other: Any, dtype: str) -> bool:
    """Whether arrays hold the same; of STRING and BYTES any sequences do."""
    wanted = numpy_dtype(dtype)
    if wanted.kind == "O":
        return bool(np.array_equal(np.array(one, object), np.array(other, object)))
    first, second = (np.array(each, wanted) for each in (one, other))
    return first.shape == second.shape and first.tobytes() == second.tobytes()


def assert_same_columns(request: PredictionRequest, part: str, wanted: dict[str, Column]) -> None:
    found = list(request.columns(part))
    assert [header.name for _, header in found] == list(wanted)
    for (position, header), column in zip(found, wanted.values(), strict=True):
        assert (header.dtype, header.row_shape) == (column.dtype, column.row_shape)
        assert same_values(request.values[position], column.values, column.dtype)
        nulls = request.nulls.get(position)
        assert (nulls is None) == (column.nulls is None)
        if nulls is not None and column.nulls is not None:
            assert nulls.tolist() == column.nulls.tolist()


@st.composite
def written(draw: st.DrawFn, rows: int, name: str) -> types_pb2.Column:
    """A well-formed column, written in one of the ways that there are for its dtype."""
    dtype = draw(st.sampled_from(list(NUMPY_DTYPES)))
    row_shape = draw(st.sampled_from([(), (), (1,), (2, 3)]))
    elements = {"STRING": st.text(max_size=3), "BYTES": st.binary(max_size=3)}.get(dtype)
    values = draw(hnp.arrays(numpy_dtype(dtype), (rows, *row_shape), elements=elements)).ravel()
    pb = types_pb2.Column(name=name, dtype=to_proto(dtype), row_shape=row_shape)
    pb.null_rows.extend(sorted(draw(st.sets(st.integers(0, rows - 1), max_size=2))))
    if values.dtype != object and draw(st.booleans()):
        pb.raw = values.tobytes()
        return pb
    plain = (values.view(np.int64) if dtype == "TIMESTAMP" else values).tolist()
    kinds = [
        kind
        for kind, (_, dtypes) in VALUE_FIELDS.items()
        if dtype in dtypes and not (kind == "uint64s" and any(value < 0 for value in plain))
    ]
    kind = draw(st.sampled_from([kind for kind in kinds if not (kind == "int64s" and max(plain) > 2**63 - 1)]))
    if VALUE_FIELDS[kind][0] == dtype and draw(st.booleans()):
        pb.ClearField("dtype")
    getattr(pb, kind).values.extend(plain)
    return pb


@st.composite
def well_formed(draw: st.DrawFn) -> PredictRequest:
    rows = draw(st.integers(1, 4))
    names = st.lists(st.sampled_from("abc"), unique=True, max_size=3)
    parts = {part: [draw(written(rows, name)) for name in draw(names)] for part in PARTS}
    return PredictRequest(deployment="d", **parts)  # type: ignore[arg-type]  # the names of three fields


@settings(deadline=None)
@given(well_formed())
def test_every_way_to_write_a_column_decodes_as_the_column_codec_has_it(pb: PredictRequest) -> None:
    request = decode_request(pb, {})
    for part in PARTS:
        assert_same_columns(request, part, decode_all(getattr(pb, part), part))


@st.composite
def any_column(draw: st.DrawFn) -> types_pb2.Column:
    """A column of fields that need not go together."""
    pb = types_pb2.Column(
        name=draw(st.sampled_from(["c", "c", "c", ""])),
        dtype=draw(st.sampled_from([0, 0, 99, *NUMBERS])),  # type: ignore[arg-type]  # one is unknown
        row_shape=draw(st.sampled_from([[], [], [2], [-1], [0]])),
        null_rows=draw(st.sampled_from([[], [], [0], [1, 0], [7]])),
    )
    kind = draw(st.sampled_from(["none", "raw", *VALUE_FIELDS]))
    if kind == "raw":
        pb.raw = draw(st.binary(max_size=16))
    elif kind != "none":
        getattr(pb, kind).SetInParent()
        getattr(pb, kind).values.extend(draw(st.lists(VALUES[kind], max_size=4)))
    return pb


NUMBERS = [to_proto(name) for name in NUMPY_DTYPES]
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "bools": st.booleans(),
    "int64s": st.sampled_from([0, -1, 300, -(2**63), 2**63 - 1]),
    "uint64s": st.sampled_from([0, 1, 300, 2**64 - 1]),
    "doubles": st.sampled_from([0.0, -1.5, 1e9, 1e300, math.nan, math.inf]),
    "strings": st.text(max_size=2),
    "blobs": st.binary(max_size=2),
}


@settings(max_examples=500, deadline=None)
@given(any_column(), st.sampled_from(PARTS))
def test_a_column_is_refused_or_taken_as_the_column_codec_does(column: types_pb2.Column, part: str) -> None:
    pb = PredictRequest(deployment="d", **{part: [column]})  # type: ignore[arg-type]  # the name of a field
    wanted, refused = outcome(lambda: decode(column, part))
    found, refused_too = outcome(lambda: decode_request(pb, {}))
    assert refused_too == refused
    if wanted is not None:
        assert_same_columns(found, part, {column.name: wanted})


def outcome(decoding: Callable[[], Any]) -> tuple[Any, Any]:
    """What was decoded and None, or None and why it was refused."""
    try:
        return decoding(), None
    except InvalidInput as error:
        return None, (error.message, error.violations)


def test_plain_values_stay_pythons_own_until_requests_are_joined() -> None:
    column = types_pb2.Column(name="c", doubles=types_pb2.Doubles(values=[1.5]))
    (values,) = decode_request(PredictRequest(context=[column]), {}).values
    assert not isinstance(values, np.ndarray)
    assert list(values) == [1.5]


def test_a_request_keeps_its_options() -> None:
    pb = PredictRequest(
        deployment="d",
        request_id="r",
        outputs=["y", "z"],
        sticky_key="k",
        return_features=True,
        now_micros=7,
    )
    wanted = PredictionRequest("d", (), [], {}, ("y", "z"), "r", "k", True, 3, 7)
    assert decode_request(pb, {VERSION_HEADER: "3"}) == wanted
    assert decode_request(pb, {}).version is None
    with pytest.raises(InvalidInput, match="must be a version number"):
        decode_request(pb, {VERSION_HEADER: "newest"})


@st.composite
def columns(draw: st.DrawFn, rows: int, names: str = "yz") -> list[Column]:
    """One of each name, with nulls or without."""
    found = []
    for name in names:
        dtype = draw(st.sampled_from(list(NUMPY_DTYPES)))
        elements = {"STRING": st.text(max_size=3), "BYTES": st.binary(max_size=3)}.get(dtype)
        shape = (rows, *draw(st.sampled_from([(), (), (), (2,)])))
        values = draw(hnp.arrays(numpy_dtype(dtype), shape, elements=elements))
        nulls = draw(st.none() | hnp.arrays(bool, rows))
        found.append(Column(name, dtype, values, nulls))
    return found


@st.composite
def features(draw: st.DrawFn, rows: int) -> FeatureBatch:
    found = {}
    all_fresh = draw(st.booleans())
    statuses = st.just(PRESENT) if all_fresh else st.sampled_from([PRESENT, PRESENT, NULL, MISSING, STALE])
    ages = st.sampled_from([0.0, 0.5, 3600.0]) if all_fresh else st.sampled_from([0.0, 0.5, 3600.0, math.nan])
    for column in draw(columns(rows, draw(st.sampled_from(["", "f", "fgh"])))):
        found[column.name] = FeatureValues(
            column,
            draw(hnp.arrays(np.uint8, rows, elements=statuses)),
            draw(hnp.arrays(np.float64, rows, elements=ages)),
        )
    return FeatureBatch(found, rows)


@st.composite
def records(draw: st.DrawFn) -> PredictionRecord:
    """Requests answered alike; in half of the records each has one row."""
    counts = draw(st.lists(st.just(1) | st.integers(1, 30), min_size=1, max_size=4))
    if draw(st.booleans()):
        counts = [1] * len(counts)
    starts = [0, *accumulate(counts)]
    rows = starts[-1]
    return PredictionRecord(
        DEPLOYMENT,
        draw(st.sampled_from([ModelRef("m", 1), ModelRef("m", 0), ModelRef("ü" * 80, 300)])),
        draw(st.sampled_from(["traffic", "pinned", "fallback:rule"])),
        draw(st.sampled_from(["", "features: UNAVAILABLE: away"])),
        "",
        {},
        draw(st.none() | features(rows)),
        draw(columns(rows)),
        [f"id-{row}" for row in range(rows)],
        starts,
        [""] * len(counts),
        [0.0] * len(counts),
    )


def by_hand(record: PredictionRecord, index: int, request: PredictionRequest, trace_id: str) -> PredictResponse:
    """The answer of one request, field by field."""
    start, stop = list(pairwise(record.starts))[index]
    rows = slice(start, stop)
    response = PredictResponse(
        request_id=request.request_id,
        outputs=[encode(column.take(rows)) for column in record.outputs],
        model=types_pb2.ModelRef(model=record.ref.model, version=record.ref.version),
        prediction_ids=[f"id-{row}" for row in range(start, stop)],
        served_by=record.served_by,
        degraded_reason=record.degraded_reason,
        trace_id=trace_id,
    )
    if record.features is not None:
        found = list(record.features.features.values())
        response.provenance.CopyFrom(provenance(found, range(start, stop)))
        if request.return_features:
            for each in found:
                response.features.add(
                    column=encode(each.column.take(rows)),
                    statuses=each.statuses[rows].tolist(),
                    ages_seconds=each.ages_seconds[rows].tolist(),
                )
    return response


def provenance(found: Sequence[FeatureValues], rows: range) -> FeatureProvenance:
    ages = [float(each.ages_seconds[row]) for each in found for row in rows]

    def names(status: int) -> list[str]:
        return [each.column.name for each in found if any(each.statuses[row] == status for row in rows)]

    return FeatureProvenance(
        oldest_age_seconds=max([age for age in ages if not math.isnan(age)], default=math.nan),
        stale=names(STALE),
        missing=names(MISSING),
        null=names(NULL),
    )


@settings(max_examples=200, deadline=None)
@given(records(), st.booleans(), st.sampled_from(["", "r", "r" * 300]), st.sampled_from(["", "ab" * 16]))
def test_an_answer_is_the_message_that_protobuf_would_write(
    record: PredictionRecord, return_features: bool, request_id: str, trace_id: str
) -> None:
    request = PredictionRequest("d", (), [], {}, request_id=request_id, return_features=return_features)
    for index in range(len(record.starts) - 1):
        found = PredictResponse.FromString(encode_response(PredictionResult(record, index), request, trace_id))
        wanted = by_hand(record, index, request, trace_id)
        # As bytes, for NaN is not equal to NaN.
        assert found.SerializeToString(deterministic=True) == wanted.SerializeToString(deterministic=True)


def test_what_requests_of_a_record_have_in_common_is_encoded_once() -> None:
    starts = [0, 1, 2]
    record = PredictionRecord(
        DEPLOYMENT, ModelRef("m", 1), "traffic", "", "", {}, None, [Column.of("y", [1.0, 2.0])], ["a", "b"], starts,
        ["", ""], [0.0, 0.0],
    )  # fmt: skip
    request = PredictionRequest("d", (), [], {})
    for index, answer in enumerate([1.0, 2.0]):
        response = PredictResponse.FromString(encode_response(PredictionResult(record, index), request, ""))
        assert list(response.outputs[0].doubles.values) == [answer]
    assert len(record.encodings) == 1
