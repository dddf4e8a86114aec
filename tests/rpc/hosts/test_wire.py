"""What strangers see of a host: plain grpcio clients, metadata, compression, sizes, and a caller that does not read."""

import asyncio
from contextlib import asynccontextmanager

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2

from treadle.core.errors import Overloaded, Violation
from treadle.v1 import features_pb2, prediction_pb2, prediction_pb2_grpc

from ..conftest import echo, over_a_network

pytestmark = over_a_network
PREDICT = "/treadle.v1.PredictionService/Predict"


def plain(stubs, **options):
    return grpc.aio.insecure_channel(stubs.channel.address, **options)


async def test_metadata_goes_both_ways_bytes_included(mesh):
    sent = (("asked", "ünïcode is not for headers".encode("ascii", "replace").decode()), ("asked-bin", b"\x00\xff\n"))
    async with mesh(echo) as (stubs, _), plain(stubs) as channel:
        call = prediction_pb2_grpc.PredictionServiceStub(channel).Predict(
            prediction_pb2.PredictRequest(deployment="x", request_id="metadata"), metadata=sent
        )
        first, last = dict(await call.initial_metadata()), dict(await call.trailing_metadata())
        assert (await call).request_id == "x"
    assert (first["first"], first["first-bin"]) == (sent[0][1], sent[1][1])
    assert (last["last"], last["last-bin"]) == (sent[0][1], sent[1][1])


async def test_an_error_carries_its_details_and_its_pushback(mesh):
    async def answer(name):
        raise Overloaded("too ünusual, 100 %", [Violation("rows", "too many")], retry_after_seconds=0.25)

    async with mesh(answer) as (stubs, _), plain(stubs) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await prediction_pb2_grpc.PredictionServiceStub(channel).Predict(prediction_pb2.PredictRequest())
    trailers = dict(caught.value.trailing_metadata())
    status = status_pb2.Status.FromString(trailers["grpc-status-details-bin"])
    bad = error_details_pb2.BadRequest()
    assert status.details[0].Unpack(bad)
    assert bad.field_violations[0].field == "rows"
    assert trailers["grpc-retry-pushback-ms"] == "250"
    assert caught.value.details() == "too ünusual, 100 %"


@pytest.mark.parametrize("compression", [grpc.Compression.Gzip, grpc.Compression.Deflate])
async def test_compressed_messages_are_read(mesh, compression):
    async with mesh(echo) as (stubs, _), plain(stubs, compression=compression) as channel:
        stub = prediction_pb2_grpc.PredictionServiceStub(channel)
        assert (await stub.Predict(prediction_pb2.PredictRequest(deployment="x" * 10_000))).request_id == "x" * 10_000
        requests = (prediction_pb2.PredictRequest(deployment=letter * 5_000) for letter in "ab")
        assert [answer.request_id[0] async for answer in stub.PredictStream(requests)] == ["a", "b"]


async def test_what_unpacks_to_more_than_the_limit_is_refused(mesh):
    async with mesh(echo) as (stubs, member), plain(stubs, compression=grpc.Compression.Gzip) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await channel.unary_unary(PREDICT)(bytes(70 << 20))
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert member.calls == []


async def test_a_large_message_goes_through_both_ways(mesh):
    async with mesh(echo) as (stubs, _):
        name = "x" * (20 << 20)
        assert await stubs.predict(name) == name


async def test_a_message_that_arrives_slowly_arrives_whole(mesh):
    """Longer under way than the host leaves between two looks at whether the caller is still there."""
    name = "".join(chr(ord("a") + number % 26) * 1000 for number in range(2_000))
    async with (
        mesh(echo) as (stubs, _),
        slow_way(stubs.channel.address) as address,
        grpc.aio.insecure_channel(address) as channel,
    ):
        stub = prediction_pb2_grpc.PredictionServiceStub(channel)
        assert (await stub.Predict(prediction_pb2.PredictRequest(deployment=name))).request_id == name


@asynccontextmanager
async def slow_way(address):
    """Another address of a server, on the way to which bytes take their time. For one connection."""
    host, _, port = address.rpartition(":")
    done = asyncio.Event()

    async def pass_on(reader, writer, seconds):
        while data := await reader.read(64 << 10):
            writer.write(data)
            await writer.drain()
            await asyncio.sleep(seconds)
        writer.close()
        await writer.wait_closed()

    async def connected(reader, writer):
        there, here = await asyncio.open_connection(host, port)
        await asyncio.gather(pass_on(reader, here, 0.02), pass_on(there, writer, 0), return_exceptions=True)
        done.set()

    async with await asyncio.start_server(connected, "127.0.0.1", 0) as server:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        await done.wait()


async def test_a_stream_goes_on_after_its_caller_has_said_all(mesh):
    """Half-close: the answers come when the requests have ended."""
    asked, finish = [], asyncio.Event()

    async def answer(name):
        asked.append(name)
        if name == "c":
            await finish.wait()
        return name

    async with mesh(answer) as (stubs, _), plain(stubs) as channel:
        call = prediction_pb2_grpc.PredictionServiceStub(channel).PredictStream()
        for name in "abc":
            await call.write(prediction_pb2.PredictRequest(deployment=name))
        await call.done_writing()
        assert (await call.read()).request_id == "a"
        finish.set()
        assert [(await call.read()).request_id for _ in range(2)] == ["b", "c"]
        assert await call.read() is grpc.aio.EOF
        assert await call.code() is grpc.StatusCode.OK


async def test_a_caller_that_does_not_read_holds_the_handler_up(mesh):
    """Backpressure: of ten answers of a megabyte each only what the windows hold is made before the first is read."""
    asked = []

    async def answer(name):
        asked.append(name)
        return name * (1 << 20)

    names = "abcdefghij" * 10
    async with mesh(answer) as (stubs, _), plain(stubs) as channel:
        requests = (prediction_pb2.PredictRequest(deployment=name) for name in names)
        call = prediction_pb2_grpc.PredictionServiceStub(channel).PredictStream(requests)
        assert (await call.read()).request_id[0] == "a"
        before = -1
        while len(asked) > before:  # until it stands still
            before = len(asked)
            await asyncio.sleep(0.3)
        assert before < len(names)
        got = 1
        while await call.read() is not grpc.aio.EOF:
            got += 1
        assert got == len(names)


async def test_many_uploads_at_once_each_arrive_whole(mesh):
    async with mesh(echo) as (stubs, _):
        uploads = [
            stubs.features.Push(features_pb2.PushRequest(view="v" * size) for _ in range(40))
            for size in (1, 100, 5_000, 70_000)
        ]
        assert [answer.rows_written for answer in await asyncio.gather(*uploads)] == [40] * 4
