"""The host: where it listens, what it says of its health, how it ends."""

import asyncio
import subprocess

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from treadle.core.errors import FailedPrecondition, TreadleError
from treadle.rpc.client.channel import Channel, Tls
from treadle.rpc.hosts.listen import Listen

from ..conftest import Stubs, echo, over_a_network

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


def port_of(address):
    return address.rpartition(":")[2]


@over_a_network
async def test_a_port_in_use_is_named(mesh):
    async with mesh(echo) as (stubs, _):
        with pytest.raises(FailedPrecondition, match=f":{port_of(stubs.channel.address)}: the port is in use"):
            async with mesh(echo, listen=Listen(stubs.channel.address)):
                pass


@over_a_network
async def test_beyond_loopback_it_takes_tls_or_an_explicit_word(mesh):
    with pytest.raises(FailedPrecondition, match="without TLS: set TREADLE_TLS_CERT"):
        async with mesh(echo, listen=Listen("0.0.0.0:0")):
            pass
    async with mesh(echo, listen=Listen("0.0.0.0:0", allow_plaintext=True)) as (stubs, _):
        assert await stubs.predict("x") == "x"


@pytest.fixture(scope="module")
def tls(tmp_path_factory):
    """A CA and a certificate for localhost that it signed."""
    folder = tmp_path_factory.mktemp("tls")
    for command in (
        "req -x509 -newkey rsa:2048 -nodes -keyout ca.key -out ca.pem -days 2 -subj /CN=ca",
        "req -newkey rsa:2048 -nodes -keyout key.pem -out csr.pem -subj /CN=x -addext subjectAltName=DNS:localhost",
        "x509 -req -in csr.pem -CA ca.pem -CAkey ca.key -out cert.pem -days 2 -copy_extensions copy",
    ):
        subprocess.run(["openssl", *command.split()], cwd=folder, check=True, capture_output=True)
    return Tls(folder / "cert.pem", folder / "key.pem", folder / "ca.pem")


@over_a_network
async def test_with_tls_only_a_client_with_a_certificate_gets_in(mesh, tls, telemetry):
    async with mesh(echo, listen=Listen("localhost:0", tls), tls=tls) as (stubs, _):
        assert await stubs.predict("secret") == "secret"
        for stranger in (None, Tls(ca=tls.ca)):
            async with Channel(stubs.channel.address, service="m", telemetry=telemetry, tls=stranger) as channel:
                with pytest.raises(TreadleError):
                    await Stubs(channel).predict(timeout=5)


@over_a_network
async def test_health_answers_for_the_process_and_for_each_service(mesh):
    async with mesh(echo) as (stubs, _):
        health = health_pb2_grpc.HealthStub(stubs.channel)
        for name in ("", "treadle.v1.PredictionService"):
            assert (await health.Check(health_pb2.HealthCheckRequest(service=name))).status == SERVING
        with pytest.raises(TreadleError):
            await health.Check(health_pb2.HealthCheckRequest(service="nonsense"))


@over_a_network
async def test_draining_says_not_serving_first_and_lets_calls_in_flight_finish(mesh):
    started, finish = asyncio.Event(), asyncio.Event()

    async def answer(name):
        started.set()
        await finish.wait()
        return name

    async with asyncio.timeout(20):
        closing = asyncio.Event()

        async def serve_until_closed(ready):
            async with mesh(answer, drain_seconds=10) as (stubs, _):
                ready.set_result(stubs)
                await closing.wait()
                # The channel is left first: the call in flight must use another.

        ready = asyncio.get_running_loop().create_future()
        server = asyncio.create_task(serve_until_closed(ready))
        address = (await ready).channel.address
        async with grpc.aio.insecure_channel(address) as channel:
            watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service=""))
            assert (await watch.read()).status == SERVING
            predict: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(
                "/treadle.v1.PredictionService/Predict"
            )
            call = asyncio.ensure_future(predict(b"\x0a\x01x"))
            await started.wait()
            closing.set()
            assert (await watch.read()).status == NOT_SERVING
            watch.cancel()
            finish.set()
            assert b"x" in await call
        await server


@over_a_network
async def test_reflection_lists_services_and_describes_their_messages(mesh):
    async with mesh(echo) as (stubs, _):
        reflection = reflection_pb2_grpc.ServerReflectionStub(stubs.channel)
        ask = reflection_pb2.ServerReflectionRequest
        answers = reflection.ServerReflectionInfo(
            a for a in (ask(list_services=""), ask(file_containing_symbol="treadle.v1.PredictRequest"))
        )
        listed, described = [answer async for answer in answers]
    names = {service.name for service in listed.list_services_response.service}
    assert {"treadle.v1.PredictionService", "grpc.health.v1.Health"} <= names
    assert described.file_descriptor_response.file_descriptor_proto
