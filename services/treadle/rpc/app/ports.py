"""Free ports, chosen and checked before a host starts that cannot say which port it got."""

import socket
from collections.abc import Mapping, Sequence

from treadle.core.errors import FailedPrecondition
from treadle.core.settings import settings_from
from treadle.rpc.app.process_settings import ProcessSettings


def resolve_ports(services: Sequence[str], environ: Mapping[str, str]) -> dict[str, str]:
    """The environment with a free port wherever it leaves the choice open: an Envoy must know before it starts.

    FailedPrecondition for a port that is taken.
    """
    process = settings_from(ProcessSettings, environ, "")
    chosen = dict(environ)
    for name, own in zip(services, process.of_each(services, environ), strict=True):
        variable = "TREADLE_LISTEN" if name == services[0] else f"TREADLE_LISTEN_{name.upper()}"
        chosen[variable] = own.listen if own.share_port else probe_port(own.listen)
    return chosen


def probe_port(address: str) -> str:
    """The address with a port that is free now; FailedPrecondition if it names one that is taken."""
    host, _, port = address.rpartition(":")
    if address.startswith("unix:"):
        return address
    try:
        with socket.create_server((host.strip("[]"), int(port))) as probe:
            return f"{host}:{probe.getsockname()[1]}"
    except (OSError, ValueError, OverflowError):
        raise FailedPrecondition(
            f"cannot listen on {address}: the port is in use, or the address is not this machine's"
        ) from None
