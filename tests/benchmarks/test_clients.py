"""Clients that read answers, against real servers: grpcio's, and one of bare HTTP."""

import asyncio
from contextlib import asynccontextmanager

import grpc.aio
import pytest
from benchmarks import clients
from benchmarks.server_requests import JSON_HEADERS, ServerRequest, WrongAnswerError


def expecting(wanted):
    def check(answer):
        if answer != wanted:
            raise WrongAnswerError("not that")

    return check


@asynccontextmanager
async def grpc_server(answer=b"right"):
    """Answers every method; an exception is raised instead."""

    async def serve(request, context):
        if isinstance(answer, grpc.StatusCode):
            await context.abort(answer, "no")
        return answer

    class Any(grpc.GenericRpcHandler):
        def service(self, details):
            return grpc.unary_unary_rpc_method_handler(serve)

    server = grpc.aio.server()
    server.add_generic_rpc_handlers((Any(),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield ServerRequest(f"127.0.0.1:{port}", "/any/Method", b"?", expecting(b"right"))
    await server.stop(None)


@asynccontextmanager
async def http_server(status=b"200 OK", body=b"right"):
    """Reads a request of one byte and answers it, on kept connections."""
    connections = []

    async def serve(reader, writer):
        connections.append(writer)
        while await reader.read(1 << 16):
            writer.write(b"HTTP/1.1 %b\r\nContent-Length: %d\r\n\r\n%b" % (status, len(body), body))
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        yield ServerRequest(
            f"127.0.0.1:{port}", "/predict", b"?", expecting(b"right"), grpc=False, headers=JSON_HEADERS
        )
    for writer in connections:
        writer.close()


@pytest.mark.parametrize("server", [grpc_server, http_server])
async def test_an_answer_is_checked(server):
    async with server() as ask:
        assert await asyncio.to_thread(clients.request_once, ask) == b"right"
    async with server(body=b"wrong") if server is http_server else server(b"wrong") as ask:
        with pytest.raises(WrongAnswerError):
            await asyncio.to_thread(clients.request_once, ask)


async def test_another_status_than_200_is_no_answer():
    async with http_server(b"503 Busy") as ask:
        with pytest.raises(WrongAnswerError, match="status 503"):
            await asyncio.to_thread(clients.request_once, ask)


@pytest.mark.parametrize("server", [grpc_server, http_server])
async def test_lone_requests_are_timed_one_by_one_without_the_first_tenth(server):
    async with server() as ask:
        taken = await asyncio.to_thread(clients.lone, ask, 20, 60.0)
    assert len(taken) == 18
    assert all(seconds > 0 for seconds in taken)


@pytest.mark.parametrize("server", [grpc_server, http_server])
async def test_an_open_loop_sends_as_many_as_its_rate_says(server):
    async with server() as ask:
        taken, errors = await clients.open_loop(ask, 200.0, 0.2, seed=1)
    assert (len(taken), errors) == (40, 0)


async def test_an_open_loop_counts_what_failed():
    async with grpc_server(grpc.StatusCode.RESOURCE_EXHAUSTED) as ask:
        assert await clients.open_loop(ask, 200.0, 0.1, seed=1) == ([], 20)
    async with http_server(b"500 Oh") as ask:
        assert await clients.open_loop(ask, 200.0, 0.1, seed=1) == ([], 20)
