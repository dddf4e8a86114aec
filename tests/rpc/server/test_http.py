"""What every HTTP request gets from `TelemetryMiddleware`: span, request context, deadline, metric, error id."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import pytest
from opentelemetry.trace import SpanKind

from treadle.core.errors import NotFound, Overloaded, TreadleError
from treadle.observability.telemetry.telemetry import Telemetry
from treadle.rpc import context
from treadle.rpc.context import RequestContext
from treadle.rpc.server.http import AsgiApp, Receive, Scope, Send, TelemetryMiddleware, http_status

Handler = Callable[[], Awaitable[str]]


def application(answer: Handler) -> AsgiApp:
    """Answers every request with what `answer` returns."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await respond(200, await answer())(scope, receive, send)

    return app


def respond(status: int, text: str) -> AsgiApp:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": text.encode()})

    return app


def error_response(path: str, error: TreadleError) -> AsgiApp:
    return respond(http_status(error), json.dumps({"path": path, "code": error.code.name, "error": error.message}))


def observed(app: AsgiApp, telemetry: Telemetry) -> AsgiApp:
    return TelemetryMiddleware(
        app,
        telemetry,
        route_template=lambda path: path if path in {"/known", "/probe"} else "other",
        error_response=error_response,
        untraced={"/probe"},
    )


async def get(app: AsgiApp, path: str = "/known", method: str = "GET", **headers: str) -> httpx.Response:
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        return await client.request(method, path, headers={name.replace("_", "-"): v for name, v in headers.items()})


def counted(telemetry: Telemetry, route: str, status: int, method: str = "GET") -> float | None:
    labels = {"http_request_method": method, "http_route": route, "http_response_status_code": str(status)}
    return telemetry.meters.registry.get_sample_value("http_server_request_duration_seconds_count", labels)


async def ok() -> str:
    return "ok"


async def test_a_request_has_a_span_in_its_callers_trace(telemetry: Telemetry) -> None:
    await get(observed(application(ok), telemetry), traceparent=f"00-{'ab' * 16}-{'cd' * 8}-01")
    (span,) = telemetry.spans
    assert span.name == "GET /known"
    assert span.kind is SpanKind.SERVER
    assert span.context is not None
    assert span.parent is not None
    assert (span.context.trace_id, span.parent.span_id) == (int("ab" * 16, 16), int("cd" * 8, 16))
    wanted = {"http.request.method": "GET", "http.route": "/known", "http.response.status_code": 200}
    assert wanted == span.attributes
    assert span.status.is_unset


async def test_the_application_finds_the_request_context(telemetry: Telemetry) -> None:
    calls: list[RequestContext] = []

    async def answer() -> str:
        calls.append(context.current())
        return "ok"

    app = observed(application(answer), telemetry)
    await get(app, treadle_tenant="acme", treadle_timeout_seconds="5", treadle_pin_version="3")
    await get(app)
    with_deadline, without = calls
    assert (with_deadline.tenant, with_deadline.metadata["treadle-pin-version"]) == ("acme", "3")
    assert with_deadline.deadline is not None
    assert (without.tenant, without.deadline) == ("", None)
    assert len(without.trace_id) == 32
    assert context.current().trace_id == ""


async def test_a_request_is_cancelled_at_its_deadline(telemetry: Telemetry) -> None:
    cancelled = asyncio.Event()

    async def never() -> str:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()
        return ""

    response = await get(observed(application(never), telemetry), treadle_timeout_seconds="0.01")
    assert cancelled.is_set()
    assert (response.status_code, response.json()["code"]) == (504, "DEADLINE_EXCEEDED")


@pytest.mark.parametrize(
    ("seconds", "status"), [("0", 504), ("-1", 504), ("soon", 400), ("nan", 400), ("inf", 400), ("1e9", 400)]
)
async def test_a_deadline_that_is_over_or_none_does_not_reach_the_application(
    telemetry: Telemetry, seconds: str, status: int
) -> None:
    async def answer() -> str:
        raise AssertionError

    response = await get(observed(application(answer), telemetry), treadle_timeout_seconds=seconds)
    assert response.status_code == status
    assert counted(telemetry, "/known", status) == 1


async def test_a_timeout_of_the_applications_own_is_not_the_callers_deadline(telemetry: Telemetry) -> None:
    async def answer() -> str:
        raise TimeoutError

    response = await get(observed(application(answer), telemetry), treadle_timeout_seconds="60")
    assert (response.status_code, response.json()["code"]) == (500, "INTERNAL")


@pytest.mark.parametrize("error", [NotFound("no such thing"), Overloaded("busy", retry_after_seconds=1.0)])
async def test_an_error_is_answered_and_counted_with_its_status(telemetry: Telemetry, error: TreadleError) -> None:
    async def answer() -> str:
        raise error

    response = await get(observed(application(answer), telemetry))
    assert response.status_code == http_status(error)
    assert response.json() == {"path": "/known", "code": error.code.name, "error": error.message}
    assert counted(telemetry, "/known", http_status(error)) == 1
    assert telemetry.spans[0].status.is_unset  # the caller's mistake is no failure of the server


async def test_an_unforeseen_error_is_answered_with_an_id_and_nothing_of_itself(telemetry: Telemetry) -> None:
    async def answer() -> str:
        raise RuntimeError("password=hunter2")

    response = await get(observed(application(answer), telemetry))
    assert response.status_code == 500
    assert "internal error" in response.json()["error"]
    assert "hunter2" not in response.text
    (span,) = telemetry.spans
    assert span.attributes is not None
    assert span.attributes["error.type"] == "500"
    assert not span.status.is_ok
    assert not span.status.is_unset


async def test_a_cancellation_that_nobody_asked_for_is_answered(telemetry: Telemetry) -> None:
    async def answer() -> str:
        raise asyncio.CancelledError

    assert (await get(observed(application(answer), telemetry))).status_code == 503


async def test_an_answer_that_breaks_off_is_not_taken_for_whole(telemetry: Telemetry) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"half", "more_body": True})
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        await get(observed(app, telemetry))
    assert counted(telemetry, "/known", 500) == 1


async def test_a_client_that_disconnects_is_no_error_of_the_server(telemetry: Telemetry) -> None:
    async def disconnected(message: Any) -> None:
        raise OSError

    async def receive() -> Any:
        return {"type": "http.disconnect"}

    scope = {"type": "http", "method": "GET", "path": "/known", "headers": []}
    await observed(application(ok), telemetry)(scope, receive, disconnected)
    assert counted(telemetry, "/known", 499) == 1
    assert telemetry.spans[0].status.is_unset


async def test_paths_and_methods_that_callers_invent_share_one_label(telemetry: Telemetry) -> None:
    app = observed(application(ok), telemetry)
    for number in range(20):
        await get(app, f"/invented/{number}", method=f"M{number}")
    assert counted(telemetry, "other", 200, "_OTHER") == 20
    assert {span.name for span in telemetry.spans} == {"_OTHER other"}


async def test_probes_are_counted_and_leave_no_span(telemetry: Telemetry) -> None:
    await get(observed(application(ok), telemetry), "/probe")
    assert counted(telemetry, "/probe", 200) == 1
    assert telemetry.spans == ()


@pytest.mark.parametrize(("status", "kept"), [(200, 0), (404, 1), (500, 1)])
async def test_what_fails_leaves_a_span_though_its_trace_is_not_sampled(
    telemetry: Telemetry, status: int, kept: int
) -> None:
    await get(observed(respond(status, "answer"), telemetry), traceparent=f"00-{'ab' * 16}-{'cd' * 8}-00")
    assert [span.attributes["http.response.status_code"] for span in telemetry.spans if span.attributes] == [
        status
    ] * kept
    assert [span.parent.span_id for span in telemetry.spans if span.parent] == [int("cd" * 8, 16)] * kept


async def test_what_is_no_http_request_goes_through(telemetry: Telemetry) -> None:
    seen: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope["type"])

    async def unused(*_: Any) -> Any:
        raise AssertionError

    await observed(app, telemetry)({"type": "lifespan"}, unused, unused)
    assert seen == ["lifespan"]
