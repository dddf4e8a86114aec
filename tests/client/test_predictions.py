"""Requests that a client sends, and results that it returns."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest

from treadle.client import AsyncClient, StreamRequest
from treadle.core.errors import InvalidInput, Unavailable


async def test_a_prediction_contains_the_whole_response(predictions: AsyncClient) -> None:
    answer = await predictions.predict("any", {"tail_number": ["N1", "N2"]}, {"x": [1.5, 2.0]}, sticky_key="k")
    np.testing.assert_array_equal(answer["twice"], [3.0, 4.0])
    assert (answer.model, answer.version, len(answer)) == ("doubler", 1, 2)
    assert answer.prediction_ids == ("k0", "k1")
    assert answer.degraded
    wind = answer.features["weather__wind"]
    assert wind.values is None
    assert wind.statuses == ("STALE", "STALE")
    assert wind.ages_seconds.tolist() == [90.0, 90.0]
    assert answer.trace_id == "ab" * 16


async def test_tenant_actor_and_pinned_version_are_sent(predictions: AsyncClient) -> None:
    answer = await predictions.predict("any", context={"x": [1.0]}, pin_version=7)
    assert answer.served_by == "airline/ada"
    assert answer.version == 7


async def test_one_value_is_one_row(predictions: AsyncClient) -> None:
    answer = await predictions.predict("any", {"tail_number": "N1"}, {"x": 2})
    assert answer["twice"].tolist() == [4]


async def test_tensors_keep_their_dtype(predictions: AsyncClient) -> None:
    answer = await predictions.predict_tensors("any", {"x": np.ones((2, 3), np.float32)})
    assert answer["twice"].dtype == np.float32
    assert answer["twice"].shape == (2, 3)


async def test_errors_name_their_violations(predictions: AsyncClient) -> None:
    with pytest.raises(InvalidInput, match="x is wrong") as caught:
        await predictions.predict("broken", context={"x": [1.0]})
    assert [each.field for each in caught.value.violations] == ["context[x]", "outputs"]


async def test_a_column_of_mixed_types_is_refused_by_the_client(predictions: AsyncClient) -> None:
    with pytest.raises(InvalidInput, match="'x'"):
        await predictions.predict("any", context={"x": [1.0, "two"]})


async def test_a_stream_matches_results_and_continues_after_an_error(predictions: AsyncClient) -> None:
    requests = [
        StreamRequest("any", context={"x": [1.0]}),
        StreamRequest("broken", context={"x": [1.0]}, request_id="bad"),
        StreamRequest("any", context={"x": [3.0]}, request_id="last"),
    ]
    answers = {answer.request_id: answer async for answer in predictions.predict_stream(requests)}
    assert set(answers) == {"0", "bad", "last"}
    assert answers["last"].result()["twice"].tolist() == [6.0]
    with pytest.raises(InvalidInput, match="x is wrong"):
        answers["bad"].result()


async def test_stream_takes_async_iterators(predictions: AsyncClient) -> None:
    async def requests() -> AsyncIterator[StreamRequest]:
        for value in (1.0, 2.0):
            yield StreamRequest("any", context={"x": [value]})

    answers = [answer.result()["twice"][0] async for answer in predictions.predict_stream(requests())]
    assert sorted(answers) == [2.0, 4.0]


async def test_labels_are_sent_in_batches_with_their_moments(predictions: AsyncClient, doubling: Any) -> None:
    ids = [str(number) for number in range(5000)]
    landed = datetime(2013, 10, 1, 12, tzinfo=UTC)
    recorded = await predictions.record_labels(ids, np.arange(5000) % 2 == 0, at=landed)
    assert recorded.rows == 5000
    assert [len(batch.prediction_ids) for batch in doubling.labels] == [4096, 904]
    assert set(doubling.labels[1].at_micros) == {int(landed.timestamp() * 1e6)}


@pytest.mark.parametrize("labels", [[1.0], [[1.0, 2.0]], 1.0])
async def test_labels_must_match_their_ids(predictions: AsyncClient, labels: object) -> None:
    with pytest.raises(InvalidInput, match="as many labels"):
        await predictions.record_labels(["a", "b"], labels)


async def test_repr_shows_the_answer_in_a_few_lines(predictions: AsyncClient) -> None:
    answer = await predictions.predict_tensors("any", {"x": np.zeros((1000, 2))})
    shown = repr(answer)
    assert "1000 rows by doubler/1" in shown
    assert "twice: FP64 [1000, 2]" in shown
    assert "degraded: features: stale: weather__wind" in shown
    assert len(shown) < 400


async def test_unreachable_gateway_is_unavailable() -> None:
    async with AsyncClient("127.0.0.1:1") as client:
        with pytest.raises(Unavailable, match=r"127\.0\.0\.1:1"):
            await client.predict("any", context={"x": [1.0]})


async def test_a_client_must_be_opened() -> None:
    with pytest.raises(RuntimeError, match="async with AsyncClient"):
        await AsyncClient().predict("any", context={"x": [1.0]})
