"""One request through every entry point, on either host: the answers are alike, alone to the last bit."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import numpy as np
import pytest

from treadle import oip
from treadle.client import AsyncClient
from treadle.client.predictions import StreamRequest
from treadle.rpc.codec.tensors import decode_outputs, encode_inputs

from .conftest import CUSTOMERS, Shop

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

REQUESTS = 30
Answer = dict[str, np.ndarray]


class Entries:
    """The entry points of one gateway; each takes rows and gives the outputs as arrays."""

    def __init__(self, client: AsyncClient, http: httpx.AsyncClient) -> None:
        self.client = client
        self.http = http
        self.oip = oip.GRPCInferenceServiceStub(client.channel)

    async def grpc_by_key(self, rows: dict[str, Any]) -> Answer:
        return dict((await self.client.predict("purchase", rows["entities"], rows["context"])).outputs)

    async def stream_by_key(self, rows: dict[str, Any]) -> Answer:
        ask = StreamRequest("purchase", rows["entities"], rows["context"])
        (answer,) = [each async for each in self.client.predict_stream([ask])]
        return dict(answer.result().outputs)

    async def rest_by_key(self, rows: dict[str, Any]) -> Answer:
        body = {part: {name: each.tolist() for name, each in rows[part].items()} for part in ("entities", "context")}
        return _arrays((await self._post("/v1/deployments/purchase:predict", body))["outputs"])

    async def grpc_by_tensor(self, rows: dict[str, Any]) -> Answer:
        return dict((await self.client.predict_tensors("purchase", rows["tensors"])).outputs)

    async def rest_by_tensor(self, rows: dict[str, Any]) -> Answer:
        body = {"tensors": {name: each.tolist() for name, each in rows["tensors"].items()}}
        return _arrays((await self._post("/v1/deployments/purchase:predict", body))["outputs"])

    async def oip_grpc_raw(self, rows: dict[str, Any]) -> Answer:
        return await self._oip(rows, raw=True)

    async def oip_grpc_typed(self, rows: dict[str, Any]) -> Answer:
        return await self._oip(rows, raw=False)

    async def _oip(self, rows: dict[str, Any], *, raw: bool) -> Answer:
        request = oip.ModelInferRequest(model_name="purchase")
        encode_inputs(request, rows["tensors"], raw=raw)
        return decode_outputs(await self.oip.ModelInfer(request))

    async def oip_rest(self, rows: dict[str, Any]) -> Answer:
        ((name, tensor),) = rows["tensors"].items()
        given = {"name": name, "shape": list(tensor.shape), "datatype": "FP64", "data": tensor.ravel().tolist()}
        outputs = (await self._post("/v2/models/purchase/infer", {"inputs": [given]}))["outputs"]
        return {each["name"]: np.array(each["data"]).reshape(each["shape"]) for each in outputs}

    async def _post(self, path: str, body: Any) -> Any:
        response = await self.http.post(path, content=json.dumps(body))
        assert response.status_code == 200, response.text
        return response.json()


def _arrays(outputs: dict[str, list[Any]]) -> Answer:
    return {name: np.array(values) for name, values in outputs.items()}


def _requests() -> list[dict[str, Any]]:
    chance = np.random.default_rng(11)
    requests = []
    for _ in range(REQUESTS):
        rows = int(chance.integers(1, 4))
        requests.append(
            {
                "entities": {"customer": chance.integers(0, CUSTOMERS, rows)},
                "context": {"basket": chance.uniform(1, 300, rows)},
                "tensors": {"features": chance.uniform(0, 200, (rows, 4))},
            }
        )
    return requests


BY_KEY = ("grpc_by_key", "stream_by_key", "rest_by_key")
BY_TENSOR = ("grpc_by_tensor", "rest_by_tensor", "oip_grpc_raw", "oip_grpc_typed", "oip_rest")


@pytest.mark.parametrize("names", [BY_KEY, BY_TENSOR], ids=["by key", "by tensor"])
async def test_every_entry_point_gives_the_same_answer(shop: Shop, names: tuple[str, ...]) -> None:
    requests = _requests()
    async with shop.client() as client, httpx.AsyncClient(base_url=shop.mesh.rest) as http:
        entries = Entries(client, http)
        asks: list[Callable[[dict[str, Any]], Awaitable[Answer]]] = [getattr(entries, name) for name in names]
        alone = [[await ask(rows) for ask in asks] for rows in requests]
        at_once = await asyncio.gather(*[ask(rows) for rows in requests for ask in asks])
    for answers in alone:
        for name, answer in zip(names, answers, strict=True):
            for output, values in answers[0].items():
                assert answer[output].tolist() == values.tolist(), f"{name} gives another {output}"
    for position, answer in enumerate(at_once):
        for output, values in alone[position // len(asks)][0].items():
            # Some arithmetic libraries round the last bit by the number of rows.
            np.testing.assert_allclose(answer[output].astype(float), values.astype(float), rtol=1e-5)
