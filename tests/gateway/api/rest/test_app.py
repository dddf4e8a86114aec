"""REST over a real socket, and its document."""

import re
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import pytest_asyncio
from jsonschema import Draft202012Validator

from treadle.gateway.api.rest.openapi import DOCUMENT

pytestmark = pytest.mark.asyncio(loop_scope="session")
URL = "/v1/deployments/delays:predict"
ASK = {"entities": {"tail": ["N1", "N2"]}, "context": {"distance": [3, None]}}


@pytest_asyncio.fixture(loop_scope="session")
async def http(gate: Any) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=f"http://{gate.rest}", timeout=20) as client:
        yield client


def documented(path: str) -> str:
    """The path of the document that a request's path matches."""
    paths: list[str] = sorted(DOCUMENT["paths"])
    return next(each for each in paths if re.fullmatch(re.sub(r"\\{\w+\\}", "[^/]+", re.escape(each)), path))


def checked(response: httpx.Response, status: int = 200) -> Any:
    """The body, which must fit what the document says of it."""
    assert response.status_code == status, response.text
    operation = DOCUMENT["paths"][documented(response.request.url.path)][response.request.method.lower()]
    schema = operation["responses"]["200" if status == 200 else "default"]["content"]["application/json"]["schema"]
    Draft202012Validator(schema | {"components": DOCUMENT["components"]}).validate(response.json())
    return response.json()


async def test_predict(http: httpx.AsyncClient) -> None:
    trace = {"traceparent": f"00-{'ab' * 16}-{'cd' * 8}-01"}
    body = checked(await http.post(URL, json=ASK | {"return_features": True, "request_id": "r"}, headers=trace))
    assert body["outputs"] == {"score": [13.0, 1020.0]}
    assert body["model"] == {"name": "weigh", "version": 1}
    assert body["features"]["aircraft__delay"]["statuses"] == ["PRESENT", "STALE"]
    assert body["trace_id"] == "ab" * 16
    assert body["request_id"] == "r"


async def test_tensors_take_their_types_from_the_signature(http: httpx.AsyncClient) -> None:
    body = checked(await http.post(URL, json={"tensors": {"x": [[1, 2], [3, 4]]}, "outputs": ["score"]}))
    assert body["outputs"] == {"score": [3.0, 7.0]}


async def test_a_pin_and_a_deadline_are_headers(http: httpx.AsyncClient) -> None:
    assert checked(await http.post(URL, json=ASK, headers={"treadle-pin-version": "1"}))["served_by"] == "pinned"
    checked(await http.post(URL, json=ASK, headers={"treadle-pin-version": "9"}), 412)
    checked(await http.post(URL, json=ASK, headers={"treadle-timeout-seconds": "0"}), 504)
    checked(await http.post(URL, json=ASK, headers={"treadle-timeout-seconds": "soon"}), 400)


@pytest.mark.parametrize(
    ("body", "wanted"),
    [
        (b"{", "not JSON"),
        (b"[1]", "JSON object"),
        (b"\xff", "not JSON"),
        (b'{"tensors": {"x": [NaN]}}', "NaN"),
        (b'{"nonsense": 1}', "nonsense is unknown"),
        (b'{"entities": [1]}', "object of columns"),
        (b'{"entities": {"tail": "N1"}}', "list with one item"),
        (b'{"entities": {"tail": [1]}}', "must hold strings"),
        (b'{"entities": {"tail": ["N1"]}, "context": {"distance": ["far"]}}', "distance"),
        (b'{"entities": {"tail": ["N1"]}, "context": {"distance": [1, 2]}}', "2 rows"),
        (b'{"tensors": {"x": [[1, 2], [3]]}}', "rows of one shape"),
        (b'{"outputs": [1]}', "list of names"),
        (b'{"outputs": 5}', "outputs must be a list"),
        (b'{"outputs": null}', "outputs must be a list"),
        (b'{"now_micros": 9999999999999999999}', "64 bits"),
        (b'{"sticky_key": "\\ud800"}', "surrogates"),
        (b'{"entities": {"tail": ["\\udfff"]}}', "surrogates"),
        (b'{"entities": {"tail": []}, "context": {"distance": []}}', "no rows"),
        (b"[" * 5_000, "not JSON"),
        (b"{}", "are missing"),
    ],
)
async def test_bad_bodies_are_named(http: httpx.AsyncClient, body: bytes, wanted: str) -> None:
    answer = checked(await http.post(URL, content=body), 400)
    assert wanted in answer["error"]
    assert answer["code"] == "INVALID_ARGUMENT"


async def test_errors_have_their_status(http: httpx.AsyncClient) -> None:
    checked(await http.post("/v1/deployments/nonsense:predict", json=ASK), 404)
    checked(await http.post(URL, content=b" " * 10_001), 413)
    assert (await http.get("/nowhere")).json()["code"] == "NOT_FOUND"
    assert (await http.get(URL)).status_code == 405


async def test_the_pages(http: httpx.AsyncClient) -> None:
    checked(await http.get("/healthz"))
    assert (await http.get("/openapi.json")).json() == DOCUMENT
    page = (await http.get("/docs")).text
    assert ":predict" in page
    assert "http" not in page.replace("http-", "")


@pytest.mark.parametrize("data", [[[1, 2], [3, 4]], [1, 2, 3, 4]])
@pytest.mark.parametrize("path", ["/v2/models/delays", "/v2/models/weigh/versions/1"])
async def test_oip_infer(http: httpx.AsyncClient, path: str, data: Any) -> None:
    tensor = {"name": "x", "shape": [2, 2], "datatype": "FP64", "data": data}
    body = checked(
        await http.post(f"{path}/infer", json={"id": "7", "inputs": [tensor], "outputs": [{"name": "score"}]})
    )
    assert body["outputs"] == [{"name": "score", "datatype": "FP64", "shape": [2], "data": [3.0, 7.0]}]
    assert body["id"] == "7"


async def test_oip_health_and_metadata(http: httpx.AsyncClient) -> None:
    assert checked(await http.get("/v2/health/live")) == {"live": True}
    assert checked(await http.get("/v2/health/ready")) == {"ready": True}
    checked(await http.get("/v2"))
    assert checked(await http.get("/v2/models/delays/ready")) == {"name": "delays", "ready": True}
    metadata = checked(await http.get("/v2/models/delays"))
    assert metadata["inputs"] == [{"name": "x", "datatype": "FP64", "shape": [-1, 2]}]
    assert set(checked(await http.get("/v2/models/nonsense"), 404)) == {"error"}


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        ({"shape": [3, 2]}, "does not fill the shape"),
        ({"shape": [-1]}, "list of sizes"),
        ({"datatype": "FP99"}, "must be one of"),
        ({"datatype": "INT8", "data": [1, 2, 3, 400]}, "does not fill"),
        ({"data": "x"}, "must be a list"),
        ({"data": ["a", "b", "c", "d"]}, "must hold FP64"),
        ({"nonsense": 1}, "unknown fields"),
    ],
)
async def test_oip_bad_input(http: httpx.AsyncClient, change: dict[str, Any], wanted: str) -> None:
    tensor = {"name": "x", "shape": [2, 2], "datatype": "FP64", "data": [1, 2, 3, 4]} | change
    answer = checked(await http.post("/v2/models/delays/infer", json={"inputs": [tensor]}), 400)
    assert wanted in answer["error"]
