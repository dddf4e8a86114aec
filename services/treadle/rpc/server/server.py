"""The gRPC server of a service, whatever its host.

`Server` looks to generated `add_*Servicer_to_server` functions like a `grpc.aio.Server`. It collects handlers and
wraps each so that a call has its `RequestContext`, its span, its metrics, and its errors mapped to a status. Hosts take
the wrapped handlers as they are.
"""

import inspect
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from typing import Any, TypeAlias

import grpc
import grpc.aio
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import DecodeError

from treadle.core.errors import Internal, InvalidInput
from treadle.observability.telemetry.telemetry import Telemetry
from treadle.rpc.server.instrumentation import GrpcCallScope, MethodInstrumentation, unexpected

# Generic in the type stubs alone.
_Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
# Stands for the many types of messages that pass through untouched.
Behaviour = Callable[[Any, Any], Any]
_Reader = Callable[[Any], Any]


class Server(grpc.GenericRpcHandler):
    """Collects the handlers of servicers; hosts ask it for the wrapped handler of a method."""

    def __init__(self, telemetry: Telemetry) -> None:
        self._telemetry = telemetry
        self._handlers: list[grpc.GenericRpcHandler] = []
        self._wrapped: dict[str, _Handler] = {}
        self._raw: set[str] = set()
        self._seconds = telemetry.meters.histogram(
            "rpc_server_call_duration_seconds",
            "Time from the arrival of a call to its answer.",
            ["rpc_method", "rpc_status_code"],
        )
        self.pools: list[DescriptorPool] = []

    def add_generic_rpc_handlers(self, generic_rpc_handlers: Iterable[grpc.GenericRpcHandler]) -> None:
        """What generated code calls for each servicer."""
        self._handlers.extend(generic_rpc_handlers)

    def add_registered_method_handlers(self, service_name: str, method_handlers: Mapping[str, _Handler]) -> None:
        """What generated code calls besides; the generic handlers know all of it already."""

    def add_descriptor_pool(self, pool: DescriptorPool) -> None:
        """Lets reflection find the messages of a private pool."""
        self.pools.append(pool)

    def unexpected(self, method: str, error: BaseException) -> Internal:
        """The error of a call that failed outside of its handler, such as in writing its answer."""
        return unexpected(self._telemetry, method, error)

    @property
    def telemetry(self) -> Telemetry:
        """What the service emits."""
        return self._telemetry

    @property
    def service_names(self) -> list[str]:
        """Full names of the services added: "treadle.v1.FeatureService"."""
        return [h.service_name() for h in self._handlers if isinstance(h, grpc.ServiceRpcHandler)]

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> "_Handler | None":
        """The wrapped handler of a method, or None: the host then answers UNIMPLEMENTED."""
        method = handler_call_details.method
        if method not in self._wrapped:
            found = (h.service(handler_call_details) for h in self._handlers)
            handler = next((h for h in found if h is not None), None)
            if handler is None:
                return None
            self._wrapped[method] = self._wrap(method, handler)
        return self._wrapped[method]

    def is_typed(self, method: str) -> bool:
        """Whether the handler takes messages; others take their bytes. For methods that `service` has found."""
        return method not in self._raw

    def _wrap(self, method: str, handler: _Handler) -> _Handler:
        if handler.request_deserializer is None:
            self._raw.add(method)
        many_in, many_out = handler.request_streaming, handler.response_streaming
        kind = f"{'stream' if many_in else 'unary'}_{'stream' if many_out else 'unary'}"
        behaviour: Behaviour = getattr(handler, kind)
        yields = many_out and inspect.isasyncgenfunction(behaviour)  # else it calls `context.write` itself
        read = _reader(handler)
        instrumentation = MethodInstrumentation(method, self._telemetry, self._seconds, streams=many_out)
        wrapped = (
            _generator(instrumentation, behaviour, read) if yields else _coroutine(instrumentation, behaviour, read)
        )
        make: Any = getattr(grpc, f"{kind}_rpc_method_handler")
        return make(wrapped, None, _writer(handler))  # type: ignore[no-any-return]  # chosen by name


def _coroutine(instrumentation: "MethodInstrumentation", behaviour: Behaviour, read: _Reader) -> Behaviour:
    async def call(request: Any, context: Any) -> Any:
        scope = GrpcCallScope(instrumentation, context)
        try:
            scope.begin()
            response = await behaviour(read(request), context)
        except BaseException as error:
            await scope.failed(error)
            raise
        scope.succeeded()
        return response

    return call


def _generator(instrumentation: "MethodInstrumentation", behaviour: Behaviour, read: _Reader) -> Behaviour:
    async def stream(request: Any, context: Any) -> AsyncIterator[Any]:
        scope = GrpcCallScope(instrumentation, context)
        try:
            scope.begin()
            async for response in behaviour(read(request), context):
                yield response
        except BaseException as error:
            await scope.failed(error)
            raise
        scope.succeeded()

    return stream


def _writer(handler: _Handler) -> Callable[[Any], bytes] | None:
    """Serialises an answer; a handler may give bytes instead, which are a serialised message already."""
    serialize = handler.response_serializer
    if serialize is None:
        return None
    return lambda answer: answer if type(answer) is bytes else serialize(answer)


def _reader(handler: _Handler) -> _Reader:
    """Makes a request, or an iterator of requests, of what the host received as bytes.

    Done inside the wrapper, so that bytes which are no message are the caller's error like any other.
    """
    parse = handler.request_deserializer or (lambda data: data)

    def one(data: Any) -> Any:
        if not isinstance(data, bytes):  # from a caller in this process
            return data
        try:
            return parse(data)
        except DecodeError:
            raise InvalidInput("the bytes received are no valid message of this method's request type") from None

    async def many(stream: AsyncIterator[Any]) -> AsyncIterator[Any]:
        async for data in stream:
            yield one(data)

    return many if handler.request_streaming else one
