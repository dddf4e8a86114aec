"""Channels to the other services of the mesh, by the name of the service."""

from collections.abc import Mapping
from types import MappingProxyType

from treadle.core.errors import FailedPrecondition
from treadle.observability.telemetry.telemetry import Telemetry
from treadle.rpc.client.channel import Channel, Tls
from treadle.rpc.client.local import LocalChannel
from treadle.rpc.server.server import Server

_VARIABLE = "TREADLE_PEER_"


def peer_addresses(environ: Mapping[str, str]) -> dict[str, str]:
    """Address by service name, from TREADLE_PEER_REGISTRY=HOST:PORT and the like."""
    return {key.removeprefix(_VARIABLE).lower(): value for key, value in environ.items() if key.startswith(_VARIABLE)}


class Peers:
    """Channels to the other services, made when first asked for."""

    def __init__(
        self,
        addresses: Mapping[str, str],
        telemetry: Telemetry,
        tls: Tls | None = None,
        local: Mapping[str, Server] = MappingProxyType({}),
    ) -> None:
        """`local`: the servers of services in this very process."""
        self._addresses = addresses
        self._telemetry = telemetry
        self._tls = tls
        self._local = local
        self._channels: dict[str, Channel] = {}

    def connect(self, service: str) -> Channel:
        """The channel to `service`; FailedPrecondition if its address is not known."""
        if service not in self._channels:
            self._channels[service] = self._open(service)
        return self._channels[service]

    def _open(self, service: str) -> Channel:
        if service in self._local:
            return LocalChannel(self._local[service], service=service, telemetry=self._telemetry)
        if service not in self._addresses:
            raise FailedPrecondition(f"the address of the {service} service is not set: {_VARIABLE}{service.upper()}")
        return Channel(self._addresses[service], service=service, telemetry=self._telemetry, tls=self._tls)

    async def close(self) -> None:
        """Closes what was opened."""
        for channel in self._channels.values():
            await channel.close()
