"""The one connection of a client: the gateway's address, and what every call through it carries."""

from collections.abc import Callable
from functools import partial
from types import TracebackType
from typing import Any, Self

from treadle.observability.telemetry.telemetry import Telemetry
from treadle.rpc.client.channel import Channel, Tls
from treadle.rpc.context import ACTOR, TENANT

DEFAULT_ADDRESS = "127.0.0.1:7700"
_PREDICT = "/treadle.v1.PredictionService/"
_CONTROL_SECONDS = 30.0


class Door(Channel):
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
        self._carried = tuple((key, value) for key, value in ((TENANT, tenant), (ACTOR, actor)) if value)

    def unary_unary(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """As `Channel`'s, with the client's deadline. Without one, a prediction takes its deployment's timeout."""
        seconds = self._timeout_seconds
        if seconds is None and not method.startswith(_PREDICT):
            seconds = _CONTROL_SECONDS
        return self._with_defaults(super().unary_unary(method, *args, **kwargs), seconds)

    def stream_unary(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """As `Channel`'s."""
        return self._with_defaults(super().stream_unary(method, *args, **kwargs), None)

    def unary_stream(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """As `Channel`'s."""
        return self._with_defaults(super().unary_stream(method, *args, **kwargs), None)

    def stream_stream(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """As `Channel`'s."""
        return self._with_defaults(super().stream_stream(method, *args, **kwargs), None)

    def _with_defaults(self, call: Callable[..., Any], seconds: float | None) -> Callable[..., Any]:
        return partial(_call, call, seconds, self._carried)


def _call(
    call: Callable[..., Any],
    seconds: float | None,
    carried: tuple[tuple[str, str], ...],
    request: Any,
    timeout: float | None = None,
    metadata: tuple[tuple[str, str], ...] = (),
) -> Any:
    return call(request, timeout=seconds if timeout is None else timeout, metadata=(*carried, *metadata))


class Connection:
    """What the parts of a client have in common: an open door. Use it as an async context manager.

    `timeout_seconds` bounds each call; None leaves predictions to their deployment's timeout and gives
    everything else 30 s. `tenant` and `actor` travel with every call; `actor` is who history will name.
    Calls to a gateway that is away for a moment are tried again within the deadline.
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
        self._open_door = partial(
            Door,
            address,
            telemetry=telemetry or Telemetry.off("client"),
            timeout_seconds=timeout_seconds,
            tenant=tenant,
            actor=actor,
            tls=tls,
        )
        self._door: Door | None = None

    @property
    def channel(self) -> Channel:
        """The open connection, for stubs of contracts that this client has no method for."""
        if self._door is None:
            raise RuntimeError(f"{type(self).__name__} is not open: use `async with {type(self).__name__}(...)`")
        return self._door

    async def __aenter__(self) -> Self:
        self._door = self._open_door()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Ends the connection. A client is opened once."""
        door, self._door = self._door, None
        if door is not None:
            await door.close()
