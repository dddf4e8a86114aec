"""The grpcio host: puts a `Server`'s wrapped handlers behind a `grpc.aio.server`."""

from dataclasses import dataclass

import grpc
import grpc.aio
from google.protobuf.descriptor_pool import Default, DescriptorPool
from grpc_health.v1 import health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2_grpc
from grpc_reflection.v1alpha.reflection import SERVICE_NAME as REFLECTION
from grpc_reflection.v1alpha.reflection import aio as reflection_aio

from treadle.rpc.channel import Tls
from treadle.rpc.errors import FailedPrecondition
from treadle.rpc.server import Server
from treadle.rpc.service import Health

_LOOPBACK = ("127.", "localhost:", "[::1]:", "unix:")


@dataclass(frozen=True)
class Listen:
    """Where and how a host listens."""

    address: str = "127.0.0.1:0"
    """host:port; port 0 picks a free one."""
    tls: Tls | None = None
    allow_plaintext: bool = False
    """Whether an address beyond loopback may go without TLS: only for a network that is private by other means."""
    max_message_bytes: int = 64 << 20
    """Larger requests are refused with RESOURCE_EXHAUSTED before they are read."""
    reflection: bool = True


class GrpcioHost:
    """Serves until stopped."""

    def __init__(self, server: Server, health: Health, listen: Listen) -> None:
        _check(listen)
        self._listen = listen
        self._health = health
        self._grpc = grpc.aio.server(
            options=(
                ("grpc.max_receive_message_length", listen.max_message_bytes),
                ("grpc.max_send_message_length", -1),
                # Two processes that share a port by mistake would each get half of the calls.
                ("grpc.so_reuseport", 0),
            )
        )
        health_pb2_grpc.add_HealthServicer_to_server(health.servicer, server)
        if listen.reflection:
            _reflect(server)
        self._grpc.add_generic_rpc_handlers((server,))

    async def start(self) -> str:
        """Begins to answer; returns the address, with the port that was picked."""
        address, tls = self._listen.address, self._listen.tls
        try:
            if tls is None:
                port = self._grpc.add_insecure_port(address)
            else:
                port = self._grpc.add_secure_port(address, tls.for_server())
        except RuntimeError:
            raise FailedPrecondition(
                f"cannot listen on {address}: the port is in use, or the address is not this machine's"
            ) from None
        await self._grpc.start()
        return address if address.startswith("unix:") else f"{address.rpartition(':')[0]}:{port}"

    async def drain(self, grace_seconds: float) -> None:
        """Says NOT_SERVING, takes no new calls, gives those in flight `grace_seconds`, then ends them."""
        await self._health.drain()
        await self._grpc.stop(grace_seconds)


def _check(listen: Listen) -> None:
    if not listen.address.startswith(_LOOPBACK) and listen.tls is None and not listen.allow_plaintext:
        raise FailedPrecondition(
            f"refusing to listen on {listen.address} without TLS: set TREADLE_TLS_CERT, TREADLE_TLS_KEY and "
            "TREADLE_TLS_CA, or TREADLE_ALLOW_PLAINTEXT=1 if this network is private by other means"
        )


class _Pools:
    """Several descriptor pools that answer as one, for reflection."""

    def __init__(self, pools: list[DescriptorPool]) -> None:
        self._pools = pools

    def __getattr__(self, name: str) -> object:
        def find(*key: object) -> object:
            for pool in self._pools[:-1]:
                try:
                    return getattr(pool, name)(*key)
                except KeyError:
                    pass
            return getattr(self._pools[-1], name)(*key)

        return find


def _reflect(server: Server) -> None:
    names = [*server.service_names, REFLECTION]
    servicer = reflection_aio.ReflectionServicer(names, pool=_Pools([Default(), *server.pools]))
    reflection_pb2_grpc.add_ServerReflectionServicer_to_server(servicer, server)
