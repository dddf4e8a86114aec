"""The service code of `inference.GRPCInferenceService` in the form of generated gRPC code, for the private pool.

`add_GRPCInferenceServiceServicer_to_server` registers handlers on any server with the methods of a grpc server, and the
stub takes any `grpc.aio.Channel`.
"""

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import grpc
from google.protobuf.message import Message
from grpc import aio

from treadle.oip import messages as m

SERVICE = "inference.GRPCInferenceService"
Context: TypeAlias = aio.ServicerContext[Any, Any]


class GRPCInferenceServiceServicer(ABC):
    """The twelve RPCs, all of which clients use: a servicer must implement them all."""

    @abstractmethod
    async def ServerLive(self, request: m.ServerLiveRequest, context: Context) -> m.ServerLiveResponse: ...
    @abstractmethod
    async def ServerReady(self, request: m.ServerReadyRequest, context: Context) -> m.ServerReadyResponse: ...
    @abstractmethod
    async def ModelReady(self, request: m.ModelReadyRequest, context: Context) -> m.ModelReadyResponse: ...
    @abstractmethod
    async def ServerMetadata(self, request: m.ServerMetadataRequest, context: Context) -> m.ServerMetadataResponse: ...
    @abstractmethod
    async def ModelMetadata(self, request: m.ModelMetadataRequest, context: Context) -> m.ModelMetadataResponse: ...
    @abstractmethod
    async def ModelInfer(self, request: m.ModelInferRequest, context: Context) -> m.ModelInferResponse: ...
    @abstractmethod
    def ModelStreamInfer(
        self, request_iterator: AsyncIterator[m.ModelInferRequest], context: Context
    ) -> AsyncIterator[m.ModelStreamInferResponse]: ...
    @abstractmethod
    async def ModelConfig(self, request: m.ModelConfigRequest, context: Context) -> m.ModelConfigResponse: ...
    @abstractmethod
    async def ModelStatistics(
        self, request: m.ModelStatisticsRequest, context: Context
    ) -> m.ModelStatisticsResponse: ...
    @abstractmethod
    async def RepositoryIndex(
        self, request: m.RepositoryIndexRequest, context: Context
    ) -> m.RepositoryIndexResponse: ...
    @abstractmethod
    async def RepositoryModelLoad(
        self, request: m.RepositoryModelLoadRequest, context: Context
    ) -> m.RepositoryModelLoadResponse: ...
    @abstractmethod
    async def RepositoryModelUnload(
        self, request: m.RepositoryModelUnloadRequest, context: Context
    ) -> m.RepositoryModelUnloadResponse: ...


@dataclass(frozen=True, slots=True)
class Method:
    """One RPC: its message classes, and whether both sides stream."""

    name: str
    request: type[Message]
    response: type[Message]
    streams: bool = False

    @property
    def path(self) -> str:
        """The path on the wire."""
        return f"/{SERVICE}/{self.name}"


METHODS = (
    Method("ServerLive", m.ServerLiveRequest, m.ServerLiveResponse),
    Method("ServerReady", m.ServerReadyRequest, m.ServerReadyResponse),
    Method("ModelReady", m.ModelReadyRequest, m.ModelReadyResponse),
    Method("ServerMetadata", m.ServerMetadataRequest, m.ServerMetadataResponse),
    Method("ModelMetadata", m.ModelMetadataRequest, m.ModelMetadataResponse),
    Method("ModelInfer", m.ModelInferRequest, m.ModelInferResponse),
    Method("ModelStreamInfer", m.ModelInferRequest, m.ModelStreamInferResponse, streams=True),
    Method("ModelConfig", m.ModelConfigRequest, m.ModelConfigResponse),
    Method("ModelStatistics", m.ModelStatisticsRequest, m.ModelStatisticsResponse),
    Method("RepositoryIndex", m.RepositoryIndexRequest, m.RepositoryIndexResponse),
    Method("RepositoryModelLoad", m.RepositoryModelLoadRequest, m.RepositoryModelLoadResponse),
    Method("RepositoryModelUnload", m.RepositoryModelUnloadRequest, m.RepositoryModelUnloadResponse),
)


class Registrar(Protocol):
    """The methods of a grpc server that register handlers."""

    def add_generic_rpc_handlers(self, generic_rpc_handlers: Any, /) -> None: ...
    def add_registered_method_handlers(self, service_name: str, method_handlers: Any, /) -> None: ...


def _handler(method: Method, behaviour: Any) -> Any:
    make = grpc.stream_stream_rpc_method_handler if method.streams else grpc.unary_unary_rpc_method_handler
    return make(
        behaviour,
        request_deserializer=method.request.FromString,
        response_serializer=method.response.SerializeToString,
    )


def add_GRPCInferenceServiceServicer_to_server(servicer: GRPCInferenceServiceServicer, server: Registrar) -> None:
    """Registers all twelve methods on `server`, as generated code does."""
    handlers = {method.name: _handler(method, getattr(servicer, method.name)) for method in METHODS}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    server.add_registered_method_handlers(SERVICE, handlers)


class GRPCInferenceServiceStub:
    """Client stub over any `aio.Channel`."""

    ServerLive: aio.UnaryUnaryMultiCallable[m.ServerLiveRequest, m.ServerLiveResponse]
    ServerReady: aio.UnaryUnaryMultiCallable[m.ServerReadyRequest, m.ServerReadyResponse]
    ModelReady: aio.UnaryUnaryMultiCallable[m.ModelReadyRequest, m.ModelReadyResponse]
    ServerMetadata: aio.UnaryUnaryMultiCallable[m.ServerMetadataRequest, m.ServerMetadataResponse]
    ModelMetadata: aio.UnaryUnaryMultiCallable[m.ModelMetadataRequest, m.ModelMetadataResponse]
    ModelInfer: aio.UnaryUnaryMultiCallable[m.ModelInferRequest, m.ModelInferResponse]
    ModelStreamInfer: aio.StreamStreamMultiCallable[m.ModelInferRequest, m.ModelStreamInferResponse]
    ModelConfig: aio.UnaryUnaryMultiCallable[m.ModelConfigRequest, m.ModelConfigResponse]
    ModelStatistics: aio.UnaryUnaryMultiCallable[m.ModelStatisticsRequest, m.ModelStatisticsResponse]
    RepositoryIndex: aio.UnaryUnaryMultiCallable[m.RepositoryIndexRequest, m.RepositoryIndexResponse]
    RepositoryModelLoad: aio.UnaryUnaryMultiCallable[m.RepositoryModelLoadRequest, m.RepositoryModelLoadResponse]
    RepositoryModelUnload: aio.UnaryUnaryMultiCallable[m.RepositoryModelUnloadRequest, m.RepositoryModelUnloadResponse]

    def __init__(self, channel: aio.Channel) -> None:
        for method in METHODS:
            make = channel.stream_stream if method.streams else channel.unary_unary
            call = make(
                method.path,
                request_serializer=method.request.SerializeToString,
                response_deserializer=method.response.FromString,
            )
            setattr(self, method.name, call)
