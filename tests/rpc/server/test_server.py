"""What every call of every service gets from `Server`."""

import asyncio
import contextvars
import gc
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from treadle.core.errors import (
    DeadlineExceeded,
    Internal,
    InvalidInput,
    NotFound,
    StorageFull,
    Unavailable,
    Unimplemented,
)
from treadle.rpc import context
from treadle.rpc.server.server import Server
from treadle.v1 import evaluation_pb2, evaluation_pb2_grpc, features_pb2, prediction_pb2, registry_pb2

from ..conftest import echo, over_a_network


async def names(*items):
    for item in items:
        yield prediction_pb2.PredictRequest(deployment=item)


async def test_all_four_kinds_of_call_work(mesh):
    async with mesh(echo) as (stubs, _):
        assert await stubs.predict("one") == "one"
        pushed = await stubs.features.Push(features_pb2.PushRequest(view=v) for v in "ab")
        assert pushed.rows_written == 2
        watched = stubs.registry.WatchDeployments(registry_pb2.WatchDeploymentsRequest(cursor="c"))
        assert [event.cursor async for event in watched] == ["c0", "c1", "c2"]
        streamed = stubs.predictions.PredictStream(names("x", "y"))
        assert [answer.request_id async for answer in streamed] == ["x", "y"]


async def test_an_error_in_the_middle_of_a_stream_ends_it_with_that_error(mesh):
    async def answer(name):
        if name.endswith("1"):
            raise InvalidInput("no ones")
        return name

    async with mesh(answer) as (stubs, _):
        got = []
        with pytest.raises(InvalidInput, match="no ones"):
            async for event in stubs.registry.WatchDeployments(registry_pb2.WatchDeploymentsRequest()):
                got.append(event.cursor)  # noqa: PERF401  # what came before the error counts
        assert got == ["0"]
        with pytest.raises(InvalidInput, match="no ones"):
            async for _ in stubs.predictions.PredictStream(names("0", "1")):
                pass


async def test_the_call_knows_its_deadline_tenant_and_metadata(mesh):
    async with mesh(echo) as (stubs, member):
        await stubs.predict(timeout=5, metadata=[("treadle-tenant", "acme"), ("treadle-pin-version", "3")])
        await stubs.predict()
    with_deadline, without = member.calls
    assert with_deadline.deadline is not None
    assert (with_deadline.tenant, with_deadline.metadata["treadle-pin-version"]) == ("acme", "3")
    assert (without.deadline, without.tenant) == (None, "")
    assert len(with_deadline.trace_id) == 32


async def test_a_late_answer_is_deadline_exceeded_and_the_handler_is_cancelled(mesh):
    cancelled = asyncio.Event()

    async def answer(name):
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()
        return name

    async with mesh(answer) as (stubs, _):
        with pytest.raises(DeadlineExceeded):
            await stubs.predict(timeout=0.05)
        await cancelled.wait()


async def test_a_caller_that_leaves_a_stream_ends_its_handler(mesh):
    arrived = asyncio.Event()

    async def answer(name):
        if name == "1":
            arrived.set()
            await asyncio.Event().wait()
        return name

    async with mesh(answer) as (stubs, member):
        stream = stubs.registry.WatchDeployments(registry_pb2.WatchDeploymentsRequest())
        assert (await anext(stream)).cursor == "0"
        await arrived.wait()
        await stream.aclose()
        await member.ended.wait()
        member.answer = echo
        assert await stubs.predict("still here") == "still here"


async def test_a_cancelled_call_cancels_its_handler(mesh):
    arrived, cancelled = asyncio.Event(), asyncio.Event()

    async def answer(name):
        arrived.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()
        return name

    async with mesh(answer) as (stubs, _):
        task = asyncio.create_task(stubs.predict())
        await arrived.wait()
        task.cancel()
        await cancelled.wait()
        with pytest.raises(asyncio.CancelledError):
            await task


@over_a_network
async def test_a_message_over_the_limit_is_refused_before_it_is_read(mesh):
    async with mesh(echo) as (stubs, member):
        with pytest.raises(StorageFull, match="larger than max"):
            await stubs.predict("x" * (65 << 20))
        assert member.calls == []
        assert await stubs.predict("small") == "small"


async def test_an_unknown_method_is_unimplemented(mesh):
    async with mesh(echo) as (stubs, _):
        stub = evaluation_pb2_grpc.EvaluationServiceStub(stubs.channel)
        with pytest.raises(Unimplemented):
            await stub.GetLiveMetrics(evaluation_pb2.GetLiveMetricsRequest())


async def test_garbage_bytes_do_not_reach_the_servicer(mesh):
    async with mesh(echo) as (stubs, member):
        call = stubs.channel.unary_unary("/treadle.v1.PredictionService/Predict")
        with pytest.raises(InvalidInput, match="no valid message"):
            await call(b"\xff\xff\xff")
        assert member.calls == []
        assert await stubs.predict("fine") == "fine"


async def test_calls_are_measured_by_method_and_code(mesh, telemetry):
    async def answer(name):
        if name == "bad":
            raise InvalidInput("bad")
        return name

    method = "treadle.v1.PredictionService/Predict"
    async with mesh(answer) as (stubs, member):
        await stubs.predict("good")
        with pytest.raises(InvalidInput):
            await stubs.predict("bad")
        for code in ("OK", "INVALID_ARGUMENT"):
            assert await counted(member, method, code) == 1
            labels = {"rpc_method": method, "rpc_status_code": code}
            assert telemetry.meters.registry.get_sample_value("rpc_client_call_duration_seconds_count", labels) == 1


async def test_the_context_of_one_call_does_not_reach_another(mesh):
    async with mesh(echo) as (stubs, member):
        await asyncio.gather(*(stubs.predict(metadata=[("treadle-tenant", f"t{i}")]) for i in range(20)))
    assert sorted(call.tenant for call in member.calls) == sorted(f"t{i}" for i in range(20))
    assert context.current().tenant == ""


async def test_a_cancellation_that_nobody_asked_for_is_answered(mesh):
    async def answer(name):
        raise asyncio.CancelledError

    async with mesh(answer) as (stubs, _):
        with pytest.raises(Unavailable, match="was cancelled; try again"):
            await stubs.predict(timeout=20)


async def counted(member, method, code):
    return await member.sample(
        "rpc_server_call_duration_seconds_count", {"rpc_method": method, "rpc_status_code": code}
    )


@pytest.mark.parametrize(("timeout", "codes"), [(None, ["CANCELLED"]), (1.0, ["DEADLINE_EXCEEDED", "CANCELLED"])])
async def test_a_stream_that_is_abandoned_while_it_is_being_sent_ends_in_order(mesh, timeout, codes):
    """grpc.aio drops such a handler's generator, and the loop closes it from a context of its own.

    A caller whose time is over hangs up. Whether the server's own clock has come as far is a matter of milliseconds.
    """
    complaints = []
    asyncio.get_running_loop().set_exception_handler(lambda _, details: complaints.append(details))

    async def large(name):
        return name * (4 << 20)

    async with mesh(large) as (stubs, member):
        more_than_buffers_hold = 40  # an Envoy takes some 30 MiB that nobody reads, and then waits
        stream = stubs.predictions.PredictStream(names(*"a" * more_than_buffers_hold), timeout=timeout)
        assert (await anext(stream)).request_id[0] == "a"
        if timeout is None:
            await stream.aclose()
        await member.ended.wait()
        gc.collect()
        await stream.aclose()
        method = "treadle.v1.PredictionService/PredictStream"
        while not any([await counted(member, method, code) for code in codes]):
            await asyncio.sleep(0.01)
    assert complaints == []


async def test_a_stream_that_is_closed_from_another_context_still_knows_its_deadline(telemetry):
    async def forever(request, context):
        while True:
            yield request

    server = Server(telemetry)
    handler: Any = grpc.unary_stream_rpc_method_handler(forever)
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("a.Service", {"Method": handler})])
    hosted: Any = SimpleNamespace(invocation_metadata=tuple, time_remaining=lambda: 0.05)
    wrapped: Any = server.service(SimpleNamespace(method="/a.Service/Method", invocation_metadata=()))
    stream = wrapped.unary_stream(b"x", hosted)
    assert await anext(stream) == b"x"
    await asyncio.sleep(0.1)
    await asyncio.create_task(stream.aclose(), context=contextvars.Context())
    labels = {"rpc_method": "a.Service/Method", "rpc_status_code": "DEADLINE_EXCEEDED"}
    assert telemetry.meters.registry.get_sample_value("rpc_server_call_duration_seconds_count", labels) == 1


@over_a_network
async def test_a_status_that_a_servicer_ends_its_call_with_is_passed_on_and_counted(mesh):
    async with mesh(echo) as (stubs, member):
        with pytest.raises(NotFound):
            await health_pb2_grpc.HealthStub(stubs.channel).Check(health_pb2.HealthCheckRequest(service="nonsense"))
        while await counted(member, "grpc.health.v1.Health/Check", "NOT_FOUND") != 1:  # the caller hears of it first
            await asyncio.sleep(0.01)


@over_a_network
async def test_an_answer_that_cannot_be_written_is_an_internal_error(mesh):
    async def answer(name):
        return name if name != "bad" else 5  # no text: protobuf refuses it

    async with mesh(answer) as (stubs, _):
        with pytest.raises(Internal, match="internal error"):
            await stubs.predict("bad")
        assert await stubs.predict("good") == "good"
