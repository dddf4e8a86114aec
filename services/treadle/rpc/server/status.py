"""The status that a servicer sets on its context: shared by the contexts of the Envoy host and of local calls."""

from collections.abc import Iterable
from typing import NoReturn

import grpc
import grpc.aio

Metadata = Iterable[tuple[str, str | bytes]]


class CallStatus:
    """Code, details and trailing metadata, set by the servicer."""

    __slots__ = ("_code", "_details", "_trailing")

    def __init__(self) -> None:
        self._code: grpc.StatusCode | None = None
        self._details = ""
        self._trailing: tuple[tuple[str, str | bytes], ...] = ()

    def set_code(self, code: grpc.StatusCode) -> None:
        """As grpc.aio's."""
        self._code = code

    def set_details(self, details: str) -> None:
        """As grpc.aio's."""
        self._details = details

    def set_trailing_metadata(self, trailing_metadata: Metadata) -> None:
        """As grpc.aio's."""
        self._trailing = tuple(trailing_metadata)

    def code(self) -> grpc.StatusCode | None:
        """As grpc.aio's."""
        return self._code

    def details(self) -> str:
        """As grpc.aio's."""
        return self._details

    def trailing_metadata(self) -> tuple[tuple[str, str | bytes], ...]:
        """As grpc.aio's."""
        return self._trailing

    async def abort(self, code: grpc.StatusCode, details: str = "", trailing_metadata: Metadata = ()) -> NoReturn:
        """Ends the call with this status; raises `grpc.aio.AbortError`."""
        self._code, self._details = code, details
        self._trailing = tuple(trailing_metadata) or self._trailing
        raise grpc.aio.AbortError
