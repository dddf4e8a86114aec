"""Invalid requests over real gRPC: each gets a clear error, and the next request is served."""

from collections.abc import AsyncIterator, Callable
from typing import Any, Literal

import grpc
import numpy as np
import pytest
import pytest_asyncio

from treadle.core.column import Column
from treadle.core.errors import DeadlineExceeded, FailedPrecondition, InvalidInput, NotFound, StorageFull, TreadleError
from treadle.features import load_definitions
from treadle.features.definition_codec import to_apply_request
from treadle.rpc.codec.columns import encode
from treadle.v1 import features_pb2 as pb
from treadle.v1 import types_pb2

Ask = pb.GetOnlineFeaturesRequest


def column(name: str, values: Any, dtype: str | None = None) -> types_pb2.Column:
    return encode(Column.of(name, values, dtype=dtype))


def good_question(rows: int = 2) -> Ask:
    return Ask(
        feature_service="flights",
        entities=[column("origin", ["EWR"] * rows), column("aircraft", np.arange(rows))],
        context=[column("distance", [1.0] * rows)],
        now_micros=10,
    )


def good_push() -> pb.PushRequest:
    return pb.PushRequest(
        view="weather",
        columns=[
            column("origin", ["EWR"]), column("wind", [1.0]), column("sky", ["clear"]), column("gusts", [3], "INT32")
        ],
        event_micros=[5],
    )  # fmt: skip


@pytest_asyncio.fixture
async def stub(serve: Any, write_project: Any) -> AsyncIterator[Any]:
    async with serve(max_rows=10) as opened:
        await opened.ApplyFeatures(to_apply_request(load_definitions(write_project())))
        yield opened
        # Whatever was asked before, the service still answers.
        assert len((await opened.GetOnlineFeatures(good_question())).features) == 6


def replaced(request: Ask, where: Literal["entities", "context"], position: int, *by: types_pb2.Column) -> Ask:
    columns = list(getattr(request, where))
    columns[position : position + 1] = by
    request.ClearField(where)
    getattr(request, where).extend(columns)
    return request


@pytest.mark.parametrize(
    ("where", "position", "by", "message"),
    [
        ("entities", 0, [], r"entities\[origin\] is missing; it is STRING"),
        ("entities", 0, [column("orgin", ["EWR", "JFK"])], r"entities\[orgin\] is unknown; did you mean 'origin'"),
        ("entities", 0, [column("origin", [1, 2])], r"entities\[origin\] is INT64, wanted STRING"),
        ("entities", 0, [column("origin", ["secret", None])], r"entities\[origin\] row 1 is null"),
        ("entities", 0, [column("origin", ["secret"])], r"has 2 rows where the others have 1"),
        ("entities", 0, [column("origin", ["x" * 600] * 2)], r"row 0: the entity key is 602 bytes long"),
        ("entities", 1, [column("aircraft", [1.0, 2.0])], r"entities\[aircraft\] is FP64, wanted INT64"),
        ("entities", 1, [column("aircraft", np.array([1, 2**63], np.uint64))], "row 1 is outside the range of INT64"),
        ("context", 0, [], r"context\[distance\] is missing; it is FP64"),
        ("context", 0, [column("distanse", [1.0, 2.0])], "did you mean 'distance'"),
        ("context", 0, [column("distance", ["a", "b"])], r"context\[distance\] is STRING, wanted FP64"),
        ("context", 0, [column("distance", [1, 2**53 + 1])], "row 1 is a whole number that FP64 cannot hold"),
        ("context", 0, [column("distance", [1.0, 2.0, 3.0])], r"context\[distance\] has 3 rows, others have 2"),
        ("context", 0, [column("distance", np.ones((2, 3)))], r"has rows of the shape \[3\], wanted scalars"),
    ],
)
async def test_columns(stub: Any, where: Any, position: int, by: list[Any], message: str) -> None:
    with pytest.raises(InvalidInput, match=message) as caught:
        await stub.GetOnlineFeatures(replaced(good_question(), where, position, *by))
    assert caught.value.violations
    assert "secret" not in str(caught.value)


async def test_one_error_lists_every_violation(stub: Any) -> None:
    request = replaced(good_question(), "entities", 0, column("orgin", ["EWR"] * 2), column("x", [1, 2]))
    with pytest.raises(InvalidInput) as caught:
        await stub.GetOnlineFeatures(request)
    assert [each.field for each in caught.value.violations] == ["entities[origin]", "entities[orgin]", "entities[x]"]


async def test_compatible_number_types_are_accepted(stub: Any) -> None:
    request = replaced(good_question(), "entities", 1, column("aircraft", [1, 2], "INT16"))
    request = replaced(request, "context", 0, column("distance", [1400, 2400]))
    assert len((await stub.GetOnlineFeatures(request)).features) == 6


@pytest.mark.parametrize(("rows", "message"), [(0, "no rows"), (11, "11 rows in one message, 10 at most")])
async def test_row_counts(stub: Any, rows: int, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        await stub.GetOnlineFeatures(good_question(rows))


async def test_a_request_without_columns(stub: Any) -> None:
    with pytest.raises(InvalidInput, match="no rows"):
        await stub.GetOnlineFeatures(Ask(feature_service="flights"))


@pytest.mark.parametrize("name", ["", "../../etc/passwd", "flights\0", "a" * 10_000])
async def test_unknown_feature_services(stub: Any, name: str) -> None:
    with pytest.raises(NotFound, match="no feature service") as caught:
        await stub.GetOnlineFeatures(Ask(feature_service=name))
    assert len(caught.value.message) < 300


async def push(stub: Any, *messages: pb.PushRequest) -> pb.PushResponse:
    answer: pb.PushResponse = await stub.Push(messages)
    return answer


def without_sky(message: pb.PushRequest) -> None:
    del message.columns[2]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda m: setattr(m, "view", "wether"), NotFound, "did you mean 'weather'"),
        (lambda m: setattr(m, "view", "../weather"), NotFound, "no feature view"),
        (without_sky, InvalidInput, r"columns of weather\[sky\] is missing"),
        (lambda m: m.columns.append(column("more", [1])), InvalidInput, r"\[more\] is unknown"),
        (lambda m: m.columns.append(column("wind", [1.0])), InvalidInput, r"\[wind\] is there twice"),
        (lambda m: m.columns[0].null_rows.append(0), InvalidInput, "row 0 is null; entity keys cannot be"),
        (lambda m: m.event_micros.append(6), InvalidInput, "2 event times for 1 rows"),
        (lambda m: m.ClearField("event_micros"), InvalidInput, "0 event times for 1 rows"),
        (lambda m: m.ClearField("columns"), InvalidInput, "no rows"),
    ],
)
async def test_pushes(stub: Any, change: Callable[[Any], None], error: type[TreadleError], message: str) -> None:
    bad = good_push()
    change(bad)
    with pytest.raises(error, match=message):
        await push(stub, good_push(), bad)
    # The message before the bad one stays written.
    answer = await stub.GetOnlineFeatures(good_question())
    assert list(answer.features[0].statuses) == [types_pb2.FEATURE_STATUS_PRESENT] * 2


async def test_an_empty_push_writes_no_rows(stub: Any) -> None:
    assert await push(stub) == pb.PushResponse()


async def test_a_full_store(serve: Any, write_project: Any) -> None:
    async with serve(map_mib=1) as stub:
        await stub.ApplyFeatures(to_apply_request(load_definitions(write_project())))
        assert (await push(stub, good_push())).rows_written == 1
        large = good_push()
        large.columns[2].CopyFrom(column("sky", ["x" * 2_000_000]))
        large.event_micros[:] = [6]
        with pytest.raises(StorageFull, match="kept nothing of this write") as caught:
            await push(stub, large)
        assert not caught.value.retryable
        answer = await stub.GetOnlineFeatures(good_question())
        assert list(answer.features[0].ages_seconds) == [5e-06] * 2


TROUBLE = """
import threading
import numpy as np
from treadle.features import Entity, FeatureService, FeatureView, Field, transform

view = FeatureView("v", [Entity("k", "INT64")], None, [Field("x", "FP64")])


@transform(inputs=["mode"], outputs=[Field("out", "FP64")])
def trouble(columns):
    mode = columns["mode"][0]
    if mode == 1:
        raise RuntimeError("secret")
    if mode == 2:
        threading.Event().wait()
    if mode == 3:
        return {"out": np.zeros(7)}
    return {"out": columns["mode"]}


troubled = FeatureService("troubled", [view], context=[Field("mode", "FP64")], transforms=[trouble])
"""


@pytest.mark.parametrize(
    ("mode", "error", "message"),
    [
        (1, FailedPrecondition, r"transform 'trouble' \(.*:trouble\) raised RuntimeError \(in trouble, line"),
        (2, DeadlineExceeded, "feature service 'troubled' did not answer for 1 s"),
        (3, FailedPrecondition, r"shape \(7,\), wanted \(1,\)"),
    ],
)
async def test_failing_transforms(
    serve: Any, write_project: Any, mode: int, error: type[TreadleError], message: str
) -> None:
    def ask(mode: float) -> Ask:
        return Ask(feature_service="troubled", entities=[column("k", [1])], context=[column("mode", [float(mode)])])

    async with serve(transform_timeout_seconds=1.0) as stub:
        await stub.ApplyFeatures(to_apply_request(load_definitions(write_project(TROUBLE))))
        with pytest.raises(error, match=message) as caught:
            await stub.GetOnlineFeatures(ask(mode))
        assert "secret" not in str(caught.value)
        answer = await stub.GetOnlineFeatures(ask(0))
        assert list(answer.features[2].column.doubles.values) == [0.0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"views": [pb.FeatureView(name="../up")]}, "not allowed"),
        ({"views": [pb.FeatureView(name="v")]}, "at least one entity"),
        ({"services": [pb.FeatureServiceSpec(name="s", sets=[pb.FeatureSet(view="gone")])]}, "unknown view 'gone'"),
        (
            {"services": [pb.FeatureServiceSpec(name="s", transforms=[pb.Transform(name="t", function="a/b:c")])]},
            "must read 'package.module:function'",
        ),
    ],
)
async def test_definitions(stub: Any, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        await stub.ApplyFeatures(pb.ApplyFeaturesRequest(**changes))


async def test_the_codes_are_those_of_the_contract(stub: Any) -> None:
    with pytest.raises(TreadleError) as caught:
        await stub.GetOnlineFeatures(Ask(feature_service="gone"))
    assert caught.value.code is grpc.StatusCode.NOT_FOUND
