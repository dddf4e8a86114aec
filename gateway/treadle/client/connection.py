"""The connection of a client to the gateway, with the metadata and deadline of its calls."""

from collections.abc import Callable
from functools import partial
from types import TracebackType
from typing import Any, Self

from treadle.observability.telemetry.telemetry import Telemetry
from treadle.rpc.client.channel import Channel, Tls
from treadle.rpc.context import ACTOR, TENANT

DEFAULT_ADDRESS = "127.0.0.1:7700"
_PREDICTION_METHODS = "/treadle.v1.PredictionService/"
_DEFAULT_TIMEOUT_SECONDS = 30.0


class GatewayChannel(Channel):
    """The channel to the gateway: adds tenant, actor and the client's deadline to each call.

    Streams get no deadline of their own: an upload or an evaluation takes as long as it takes.
    """

    def __init__(
        self,
        address: str,
        *,
        telemetry: Telemetry,
        timeout_seconds: float | None,
        tenant: str,
        actor: str,
        tls: Tls | None,
    ) -> None:
        super().__init__(address, service="gateway", telemetry=telemetry, tls=tls)
        self._timeout_seconds = timeout_seconds
        self._metadata = tuple((key, value) for key, value in ((TENANT, tenant), (ACTOR, actor)) if value)

    def unary_unary(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """As `Channel.unary_unary`, with the client's timeout; predictions default to their deployment's."""
        seconds = self._timeout_seconds
        if seconds is None and not method.startswith(_PREDICTION_METHODS):
            seconds = _DEFAULT_TIMEOUT_SECONDS
        return self._with_defaults(super().unary_unary(method, *args, **kwargs), seconds)

    def stream_unary(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """As `Channel.stream_unary`, with the client\'s metadata."""
        return self._with_defaults(super().stream_unary(method, *args, **kwargs), None)

    def unary_stream(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """As `Channel.unary_stream`, with the client\'s metadata."""
        return self._with_defaults(super().unary_stream(method, *args, **kwargs), None)

    def stream_stream(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """As `Channel.stream_stream`, with the client\'s metadata."""
        return self._with_defaults(super().stream_stream(method, *args, **kwargs), None)

    def _with_defaults(self, call: Callable[..., Any], seconds: float | None) -> Callable[..., Any]:
        return partial(_call_with_defaults, call, seconds, self._metadata)


def _call_with_defaults(
    call: Callable[..., Any],
    seconds: float | None,
    defaults: tuple[tuple[str, str], ...],
    request: Any,
    timeout: float | None = None,
    metadata: tuple[tuple[str, str], ...] = (),
) -> Any:
    return call(request, timeout=seconds if timeout is None else timeout, metadata=(*defaults, *metadata))


class Connection:
    """Base class of the parts of a client: an open gateway channel. Use it as an async context manager.

    `timeout_seconds` bounds each call; None leaves predictions to their deployment's timeout and gives
    everything else 30 s. `tenant` and `actor` are sent with every call; the registry's history names the
    actor. Calls are retried within the deadline while the gateway is unavailable.
    """

    def __init__(
        self,
        address: str = DEFAULT_ADDRESS,
        *,
        timeout_seconds: float | None = None,
        tenant: str = "",
        actor: str = "",
        tls: Tls | None = None,
        telemetry: Telemetry | None = None,
    ) -> None:
        self.address = address
        self._open_channel = partial(
            GatewayChannel,
            address,
            telemetry=telemetry or Telemetry.off("client"),
            timeout_seconds=timeout_seconds,
            tenant=tenant,
            actor=actor,
            tls=tls,
        )
        self._channel: GatewayChannel | None = None

    @property
    def channel(self) -> Channel:
        """The open channel, for stubs of RPCs that this client has no method for. RuntimeError unless open."""
        if self._channel is None:
            raise RuntimeError(f"{type(self).__name__} is not open: use `async with {type(self).__name__}(...)`")
        return self._channel

    async def __aenter__(self) -> Self:
        self._channel = self._open_channel()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes the connection. A client cannot be opened again."""
        channel, self._channel = self._channel, None
        if channel is not None:
            await channel.close()
