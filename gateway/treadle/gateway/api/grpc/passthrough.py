"""One door: forwards the RPCs of the services behind the gateway, bytes in and bytes out.

Nothing is parsed. Deadline, tenant, actor and trace travel through the client seam; other metadata that belongs to the
caller is passed on as it is. Errors come back with their code, message and details.
"""

from collections.abc import AsyncIterator, Mapping
from typing import Any

import grpc
import grpc.aio
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor

from treadle.rpc.client.channel import Channel
from treadle.rpc.context import FORWARDED, TENANT, VERSION_HEADER, current
from treadle.v1 import evaluation_pb2, features_pb2, registry_pb2

FORWARDED_SERVICES: Mapping[str, ServiceDescriptor] = {
    "features": features_pb2.DESCRIPTOR.services_by_name["FeatureService"],
    "registry": registry_pb2.DESCRIPTOR.services_by_name["RegistryService"],
    "evaluation": evaluation_pb2.DESCRIPTOR.services_by_name["EvaluationService"],
}
# What each hop sets itself.
_OWN = frozenset(
    {
        "user-agent",
        "te",
        "content-type",
        "traceparent",
        "tracestate",
        "host",
        "authority",
        TENANT,
        VERSION_HEADER,
        *FORWARDED,
    }
)


def forward(service: ServiceDescriptor, channel: Channel, server: grpc.aio.Server) -> None:
    """Registers every method of `service` on `server`, to be answered by whatever is behind `channel`."""
    handlers = {
        method.name: _handler(f"/{service.full_name}/{method.name}", method, channel) for method in service.methods
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service.full_name, handlers),))


def forwarded_metadata() -> list[tuple[str, str]]:
    """The present call's metadata that is the caller's own and not a hop's."""
    metadata = current().metadata
    return [(key, value) for key, value in metadata.items() if key not in _OWN and not key.startswith(("grpc-", ":"))]


def _handler(path: str, method: MethodDescriptor, channel: Channel) -> Any:
    many_in, many_out = method.client_streaming, method.server_streaming
    kind = f"{'stream' if many_in else 'unary'}_{'stream' if many_out else 'unary'}"
    call = getattr(channel, kind)(path, request_serializer=None, response_deserializer=None)

    async def answer(request: Any, context: Any) -> Any:
        return await call(request, metadata=forwarded_metadata())

    async def stream(request: Any, context: Any) -> AsyncIterator[Any]:
        async for response in call(request, metadata=forwarded_metadata()):
            yield response

    make = getattr(grpc, f"{kind}_rpc_method_handler")
    return make(stream if many_out else answer)
