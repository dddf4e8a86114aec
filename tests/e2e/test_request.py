"""One request through real processes: what comes back, and what is left behind."""

import httpx
import numpy as np
import pytest

from treadle.core.errors import DeadlineExceeded, InvalidInput, NotFound

pytestmark = pytest.mark.slow


async def test_a_prediction_by_entity_key_says_all_about_itself(shop):
    async with shop.client() as client:
        answer = await client.predict("purchase", shop.entities(1, 2), shop.context(20, 250), return_features=True)
    assert answer["probability"].shape == (2, 2)
    assert (answer.model, answer.version, answer.served_by, answer.degraded_reason) == ("purchase", 1, "traffic", "")
    assert len(set(answer.prediction_ids)) == 2
    assert len(answer.trace_id) == 32
    assert set(answer.features) >= {"spending__visits", "spending__mean_amount", "ratio"}


async def test_rest_gives_the_same_answer(shop):
    async with shop.client() as client:
        grpc = await client.predict("purchase", shop.entities(7), shop.context(33))
    async with httpx.AsyncClient(base_url=shop.mesh.rest) as http:
        body = {"entities": {"customer": [7]}, "context": {"basket": [33.0]}}
        rest = (await http.post("/v1/deployments/purchase:predict", json=body)).json()
    assert np.allclose(rest["outputs"]["probability"], grpc["probability"])


async def test_a_missing_entity_goes_to_the_fallback_and_says_why(shop):
    async with shop.client() as client:
        answer = await client.predict("purchase", shop.entities(10**9), shop.context(20))
    assert answer.served_by == "fallback:small-basket"
    assert "spending" in answer.degraded_reason


async def test_bad_input_is_the_callers_error_and_others_go_on(shop):
    async with shop.client() as client:
        with pytest.raises(NotFound, match="nonsense"):
            await client.predict("nonsense", shop.entities(1), shop.context(1))
        with pytest.raises(InvalidInput, match="custmer"):
            await client.predict("purchase", {"custmer": [1]}, shop.context(1))
        with pytest.raises(InvalidInput):
            await client.predict("purchase", {"customer": ["one"]}, shop.context(1))
        with pytest.raises(InvalidInput):
            await client.predict("purchase", {"customer": np.array([], dtype=int)}, {"basket": np.array([])})
        with pytest.raises((DeadlineExceeded, InvalidInput)):
            await client.predict("purchase", shop.entities(1), shop.context(1), timeout_seconds=1e-6)
        assert (await client.predict("purchase", shop.entities(1), shop.context(1))).served_by == "traffic"


async def test_ten_million_rows_are_refused(shop):
    async with shop.client() as client:
        with pytest.raises(Exception, match=r"(?i)rows|larger than max"):
            await client.predict("purchase", {"customer": np.zeros(10_000_000, int)}, {"basket": np.zeros(10_000_000)})
        assert (await client.predict("purchase", shop.entities(1), shop.context(1))).served_by == "traffic"
