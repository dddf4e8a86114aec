"""HTTP on each host: a request is a call of the service as those over gRPC are."""

from typing import Any

import httpx

from treadle.core.errors import NotFound

from ..conftest import echo, over_a_network

TRACE = "ab" * 16
HEADERS = {"traceparent": f"00-{TRACE}-{'cd' * 8}-01", "treadle-tenant": "acme"}


async def get(member: Any, path: str, **headers: str) -> httpx.Response:
    async with httpx.AsyncClient(timeout=20) as client:
        return await client.get(f"http://{http_address(member)}{path}", headers=HEADERS | headers)


def http_address(member: Any) -> str:
    """The Envoy host answers HTTP on its gRPC port, the grpcio host on a second one."""
    return str(member.http_address or member.address)


@over_a_network
async def test_a_request_has_a_span_under_its_callers_and_a_context(mesh: Any) -> None:
    async with mesh(echo, http=True) as (_, member):
        answer = await get(member, "/page")
        spans = await member.spans()
    assert (answer.status_code, answer.text) == (200, "/page")
    assert spans == [("GET /{path}", TRACE, "cd" * 8)]
    (call,) = member.calls
    assert (call.trace_id, call.tenant) == (TRACE, "acme")


@over_a_network
async def test_errors_are_answered_and_counted(mesh: Any) -> None:
    async def answer(name: str) -> str:
        raise NotFound("no such page") if name == "/absent" else RuntimeError("password=hunter2")

    async with mesh(answer, http=True) as (_, member):
        absent, broken = await get(member, "/absent"), await get(member, "/broken")
        counts = [
            await member.sample(
                "http_server_request_duration_seconds_count",
                {"http_request_method": "GET", "http_route": "/{path}", "http_response_status_code": status},
            )
            for status in ("404", "500")
        ]
    assert (absent.status_code, absent.text) == (404, "no such page")
    assert broken.status_code == 500
    assert "hunter2" not in broken.text
    assert counts == [1, 1]


@over_a_network
async def test_a_deadline_ends_a_request(mesh: Any) -> None:
    async def answer(name: str) -> str:
        raise AssertionError

    async with mesh(answer, http=True) as (_, member):
        assert (await get(member, "/page", **{"treadle-timeout-seconds": "0"})).status_code == 504
    assert member.calls == []
