"""Where and how a host listens, and what every host offers besides the services."""

from collections.abc import Sequence
from dataclasses import dataclass

from google.protobuf.descriptor_pool import Default, DescriptorPool
from grpc_health.v1 import health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2_grpc
from grpc_reflection.v1alpha.reflection import SERVICE_NAME as REFLECTION
from grpc_reflection.v1alpha.reflection import aio as reflection_aio

from treadle.core.errors import FailedPrecondition
from treadle.rpc.app.runtime import Health
from treadle.rpc.client.channel import Tls
from treadle.rpc.server.server import Server

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
    share_port: bool = False
    """Whether other processes of the same service listen on this port too."""

    def __post_init__(self) -> None:
        if not self.address.startswith(_LOOPBACK) and self.tls is None and not self.allow_plaintext:
            raise FailedPrecondition(
                f"refusing to listen on {self.address} without TLS: set TREADLE_TLS_CERT, TREADLE_TLS_KEY and "
                "TREADLE_TLS_CA, or TREADLE_ALLOW_PLAINTEXT=1 if this network is private by other means"
            )


def add_common_services(server: Server, health: Health, *, reflection: bool) -> None:
    """Health, and reflection over every pool that the services use."""
    health_pb2_grpc.add_HealthServicer_to_server(health.servicer, server)
    if reflection:
        names = [*server.service_names, REFLECTION]
        servicer = reflection_aio.ReflectionServicer(names, pool=_Pools([Default(), *server.pools]))
        reflection_pb2_grpc.add_ServerReflectionServicer_to_server(servicer, server)


class _Pools:
    """Several descriptor pools that answer as one, for reflection."""

    def __init__(self, pools: Sequence[DescriptorPool]) -> None:
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
