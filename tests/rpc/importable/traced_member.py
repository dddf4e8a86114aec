"""A member as a process of its own, configured by the environment alone: `python traced_member.py HOST`.

The name in a request says what becomes of it.
"""

import asyncio
import os
import signal
import sys
from dataclasses import dataclass

from member import Member, opener

from treadle.core.errors import InvalidInput, Overloaded
from treadle.rpc import tracing
from treadle.rpc.app.runtime import ServiceSpec
from treadle.rpc.app.serving import serve
from treadle.rpc.hosts.choice import ENVOY
from treadle.rpc.hosts.envoy.host import EnvoyProcess
from treadle.rpc.hosts.envoy.process import become_envoy
from treadle.rpc.hosts.envoy.settings import envoy_settings


@dataclass(frozen=True)
class NoSettings:
    """None."""


async def answer(name: str) -> str:
    """The answer to a request."""
    match name:
        case "invalid":
            tracing.annotate({"treadle.deployment": "income"})
            raise InvalidInput("not this name")
        case "overloaded":
            raise Overloaded("no room")
        case "crash":
            raise RuntimeError("a value that nobody may see")
        case "degraded":
            tracing.keep_span({"treadle.degraded_reason": "timeout", "treadle.version": 3})
        case "hang":
            await asyncio.Event().wait()
        case "traceparent":
            return tracing.traceparent()
    return name


SERVICES = (ServiceSpec("member", opener(Member(answer)), NoSettings),)


async def envoy_services(process: EnvoyProcess) -> None:
    await serve(SERVICES, os.environ, stopping=process.stopping, make_host=process.host, started=process.started.set)


async def grpcio_services() -> None:
    stopping = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopping.set)
    await serve(SERVICES, os.environ, stopping=stopping)


app = EnvoyProcess(envoy_services)

if __name__ == "__main__":
    if sys.argv[1] == ENVOY:
        become_envoy(envoy_settings("traced_member:app", ["member"], os.environ), os.environ, drain_seconds=1.0)
    asyncio.run(grpcio_services())
