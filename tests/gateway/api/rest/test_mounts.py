"""Applications mounted beside REST get the same instrumentation and errors."""

from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from treadle.core.errors import NotFound
from treadle.gateway.api.rest.app import Rest, make_app
from treadle.observability.telemetry.telemetry import Telemetry
from treadle.rpc.context import current

REST: Any = Rest(None, None, 1)  # type: ignore[arg-type]  # no test here makes a prediction


async def page(request: Request) -> Response:
    return PlainTextResponse(f"page {request.path_params['name']} of {current().tenant}")


async def absent(scope: Any, receive: Any, send: Any) -> None:
    raise NotFound("no such page")


async def broken(scope: Any, receive: Any, send: Any) -> None:
    raise RuntimeError("password=hunter2")


@pytest.fixture
def telemetry() -> Telemetry:
    return Telemetry.recording("gateway")


@pytest.fixture
def client(telemetry: Telemetry) -> httpx.AsyncClient:
    pages = Starlette(routes=[Route("/pages/{name}", page)])
    app = make_app(REST, telemetry, {"/console": pages, "/absent": absent, "/broken": broken})
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://gateway")


async def test_a_mounted_application_is_a_call_of_the_gateway(client: httpx.AsyncClient, telemetry: Telemetry) -> None:
    headers = {"treadle-tenant": "acme", "traceparent": f"00-{'ab' * 16}-{'cd' * 8}-01"}
    answer = await client.get("/console/pages/models", headers=headers)
    assert answer.text == "page models of acme"
    (span,) = telemetry.spans
    assert span.name == "GET /console/{path}"
    assert span.context is not None
    assert span.context.trace_id == int("ab" * 16, 16)


async def test_a_deadline_holds_there(client: httpx.AsyncClient) -> None:
    answer = await client.get("/console/pages/models", headers={"treadle-timeout-seconds": "0"})
    assert answer.status_code == 504


async def test_its_errors_are_rests_errors(client: httpx.AsyncClient) -> None:
    answer = await client.get("/absent/x")
    assert (answer.status_code, answer.json()) == (
        404,
        {"error": "no such page", "code": "NOT_FOUND", "violations": []},
    )
    answer = await client.get("/broken/x")
    assert (answer.status_code, answer.json()["code"]) == (500, "INTERNAL")
    assert "hunter2" not in answer.text


async def test_beside_the_mounts_an_unknown_path_is_rests_404(client: httpx.AsyncClient) -> None:
    answer = await client.get("/consol")
    assert (answer.status_code, answer.json()["code"]) == (404, "NOT_FOUND")
    assert "/openapi.json" in answer.json()["error"]
    assert (await client.get("/healthz")).json() == {"status": "ok"}
    assert (await client.post("/healthz")).json()["code"] == "UNIMPLEMENTED"
    assert (await client.get("/v2/nothing")).json() == {"error": "there is nothing under this path; see /openapi.json"}
