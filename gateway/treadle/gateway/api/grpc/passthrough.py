"""Forwards the RPCs of the services behind the gateway, so that clients need its address alone.

Messages are bytes that nobody parses here. `Channel` passes on deadline, tenant, actor and trace; other metadata of the
caller is forwarded as it is. Errors come back with their code, message and details.
"""

from collections.abc import AsyncIterator, Mapping
from typing import Any

import grpc
import grpc.aio
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor

from treadle.core.errors import FailedPrecondition, TreadleError, Unavailable
from treadle.rpc.app.runtime import Runtime
from treadle.rpc.client.channel import Channel
from treadle.rpc.context import FORWARDED, TENANT, VERSION_HEADER, current
from treadle.v1 import evaluation_pb2, features_pb2, registry_pb2, traces_pb2

FORWARDED_SERVICES: Mapping[str, ServiceDescriptor] = {
    "features": features_pb2.DESCRIPTOR.services_by_name["FeatureService"],
    "registry": registry_pb2.DESCRIPTOR.services_by_name["RegistryService"],
    "evaluation": evaluation_pb2.DESCRIPTOR.services_by_name["EvaluationService"],
    "traces": traces_pb2.DESCRIPTOR.services_by_name["TraceQueryService"],
}
OPTIONAL_SERVICES = frozenset({"traces"})
"""A mesh that sends its spans to a collector of its own runs without them."""
# Metadata that every service sets itself for those that it calls.
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


def forward_services(runtime: Runtime) -> None:
    """Registers every method of `FORWARDED_SERVICES` on the gateway's server.

    FailedPrecondition if the address of a service is not set. An optional one then answers UNAVAILABLE, and says so.
    """
    for name, service in FORWARDED_SERVICES.items():
        try:
            upstream: Channel | TreadleError = runtime.connect(name)
        except FailedPrecondition as error:
            if name not in OPTIONAL_SERVICES:
                raise
            upstream = Unavailable(f"this gateway has no {name} service: {error.message}")
        _forward(service, upstream, runtime.server)


def _forward(service: ServiceDescriptor, upstream: Channel | TreadleError, server: grpc.aio.Server) -> None:
    handlers = {}
    for method in service.methods:
        if isinstance(upstream, TreadleError):
            handlers[method.name] = _refusal(method, upstream)
        else:
            handlers[method.name] = _handler(f"/{service.full_name}/{method.name}", method, upstream)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service.full_name, handlers),))


def forwarded_metadata() -> list[tuple[str, str]]:
    """The metadata of the present call that its caller chose, without what each service sets itself."""
    metadata = current().metadata
    return [(key, value) for key, value in metadata.items() if key not in _OWN and not key.startswith(("grpc-", ":"))]


def _kind(method: MethodDescriptor) -> str:
    sends, answers = ("stream" if many else "unary" for many in (method.client_streaming, method.server_streaming))
    return f"{sends}_{answers}"


def _refusal(method: MethodDescriptor, error: TreadleError) -> Any:
    async def refuse(request: Any, context: Any) -> Any:
        raise error.clone()

    return getattr(grpc, f"{_kind(method)}_rpc_method_handler")(refuse)


def _handler(path: str, method: MethodDescriptor, channel: Channel) -> Any:
    kind = _kind(method)
    call = getattr(channel, kind)(path, request_serializer=None, response_deserializer=None)

    async def answer(request: Any, context: Any) -> Any:
        return await call(request, metadata=forwarded_metadata())

    async def stream(request: Any, context: Any) -> AsyncIterator[Any]:
        async for response in call(request, metadata=forwarded_metadata()):
            yield response

    make = getattr(grpc, f"{kind}_rpc_method_handler")
    return make(stream if method.server_streaming else answer)
