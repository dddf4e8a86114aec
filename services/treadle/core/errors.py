"""The errors that Treadle services raise and clients receive.

    TreadleError
    ├── InvalidInput        INVALID_ARGUMENT     the request is wrong; details say which field
    ├── NotFound            NOT_FOUND
    ├── AlreadyExists       ALREADY_EXISTS
    ├── FailedPrecondition  FAILED_PRECONDITION  right request, wrong state; change the state first
    ├── Conflict            ABORTED              someone else was first; read again, then retry
    ├── OutOfRange          OUT_OF_RANGE
    ├── Unauthenticated     UNAUTHENTICATED
    ├── PermissionDenied    PERMISSION_DENIED
    ├── Overloaded          RESOURCE_EXHAUSTED   retry, after the pushback
    ├── StorageFull         RESOURCE_EXHAUSTED   do not retry: make room
    ├── Unavailable         UNAVAILABLE          retry: not ready, or out of reach for now
    ├── DeadlineExceeded    DEADLINE_EXCEEDED
    ├── Cancelled           CANCELLED
    ├── DataLoss            DATA_LOSS            stored bytes have changed since they were written
    ├── Unimplemented       UNIMPLEMENTED
    └── Internal            INTERNAL             a fault of the server

Servicers raise these errors. The instrumentation of the server turns them into a gRPC status, the client's channel
turns the status back into the same error. Messages say what was wrong, where, and what to do. They never hold values of
columns, which may be sensitive.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import grpc
import grpc.aio
from google.protobuf import any_pb2, duration_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2

PUSHBACK_KEY = "grpc-retry-pushback-ms"
"""Key of the trailing metadata with the milliseconds after which a client may retry."""
STATUS_DETAILS_KEY = "grpc-status-details-bin"
"""Key of the trailing metadata with the serialized rich status."""


@dataclass(frozen=True, slots=True)
class Violation:
    """One mistake in one field of a request: `entities[1].values`, "has 3 rows, wanted 2"."""

    field: str
    description: str


class TreadleError(Exception):
    """The base class, never raised itself. Each subclass owns its gRPC code and says whether a retry can help."""

    code: ClassVar[grpc.StatusCode]
    retryable: ClassVar[bool] = False

    def __init__(
        self, message: str, violations: Sequence[Violation] = (), retry_after_seconds: float | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.violations = tuple(violations)
        self.retry_after_seconds = retry_after_seconds

    def clone(self, message: str = "") -> Self:
        """A copy with a traceback of its own; `message`, unless empty, replaces the text."""
        return type(self)(message or self.message, self.violations, self.retry_after_seconds)

    def to_status(self) -> status_pb2.Status:
        """The rich status of the error: code, message, and `BadRequest` or `RetryInfo` details where they apply."""
        status = status_pb2.Status(code=self.code.value[0], message=self.message)
        if self.violations:
            fields = [
                error_details_pb2.BadRequest.FieldViolation(field=v.field, description=v.description)
                for v in self.violations
            ]
            status.details.append(_pack(error_details_pb2.BadRequest(field_violations=fields)))
        if self.retry_after_seconds is not None:
            delay = duration_pb2.Duration(nanos=0)
            delay.FromNanoseconds(int(self.retry_after_seconds * 1e9))
            status.details.append(_pack(error_details_pb2.RetryInfo(retry_delay=delay)))
        return status

    def trailing_metadata(self) -> tuple[tuple[str, str | bytes], ...]:
        """Trailing metadata beside code and message: the rich status, and the pushback in milliseconds."""
        trailers: list[tuple[str, str | bytes]] = []
        if self.violations or self.retry_after_seconds is not None:
            trailers.append((STATUS_DETAILS_KEY, self.to_status().SerializeToString()))
        if self.retry_after_seconds is not None:
            trailers.append((PUSHBACK_KEY, str(int(self.retry_after_seconds * 1000))))
        return tuple(trailers)


class InvalidInput(TreadleError):
    """The request is malformed: it can never succeed unchanged."""

    code = grpc.StatusCode.INVALID_ARGUMENT

    @classmethod
    def at(cls, field: str, what: str) -> "InvalidInput":
        """One field is wrong: `at("entities[origin]", "has 3 rows where the others have 2")`."""
        return cls(f"{field} {what}", [Violation(field, what)])


class NotFound(TreadleError):
    """The resource that the request names does not exist."""

    code = grpc.StatusCode.NOT_FOUND


class AlreadyExists(TreadleError):
    """The name of the new resource is taken."""

    code = grpc.StatusCode.ALREADY_EXISTS


class FailedPrecondition(TreadleError):
    """The request is valid, but the system is not in the state that it needs; a retry alone does not help."""

    code = grpc.StatusCode.FAILED_PRECONDITION


class Conflict(TreadleError):
    """Another caller changed the same resource first: read it again and decide again."""

    code = grpc.StatusCode.ABORTED


class OutOfRange(TreadleError):
    """A cursor or page token that belongs to another history."""

    code = grpc.StatusCode.OUT_OF_RANGE


class Unauthenticated(TreadleError):
    """The call carries no valid credential."""

    code = grpc.StatusCode.UNAUTHENTICATED


class PermissionDenied(TreadleError):
    """The credential is valid, but does not grant this action."""

    code = grpc.StatusCode.PERMISSION_DENIED


class Overloaded(TreadleError):
    """The server is over its limits; `retry_after_seconds` says when to retry."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED
    retryable = True

    def __init__(
        self, message: str, violations: Sequence[Violation] = (), retry_after_seconds: float | None = 0.1
    ) -> None:
        super().__init__(message, violations, retry_after_seconds)


class StorageFull(TreadleError):
    """The disk is full; nothing was written."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED


class Unavailable(TreadleError):
    """The service is not ready yet, or cannot be reached for now."""

    code = grpc.StatusCode.UNAVAILABLE
    retryable = True


class DeadlineExceeded(TreadleError):
    """The caller's deadline has passed."""

    code = grpc.StatusCode.DEADLINE_EXCEEDED


class Cancelled(TreadleError):
    """The caller cancelled the call."""

    code = grpc.StatusCode.CANCELLED


class DataLoss(TreadleError):
    """Stored bytes have changed since they were written (a digest or checksum differs)."""

    code = grpc.StatusCode.DATA_LOSS


class Unimplemented(TreadleError):
    """The server does not know this RPC."""

    code = grpc.StatusCode.UNIMPLEMENTED


class Internal(TreadleError):
    """A fault of the server. Callers see an error id; the cause stands under it in the log."""

    code = grpc.StatusCode.INTERNAL


def error_classes() -> Iterator[type[TreadleError]]:
    """All concrete error classes, in the order of the tree above."""
    return iter(TreadleError.__subclasses__())


def from_status(status: status_pb2.Status, *, pushback: str | None = None) -> TreadleError:
    """The error that a rich status stands for.

    `pushback`, in milliseconds, is the metadata of a server that sends no `RetryInfo` detail.
    """
    violations: list[Violation] = []
    retry_after: float | None = None
    for detail in status.details:
        bad, retry = error_details_pb2.BadRequest(), error_details_pb2.RetryInfo()
        if detail.Unpack(bad):
            violations.extend(Violation(v.field, v.description) for v in bad.field_violations)
        elif detail.Unpack(retry):
            retry_after = retry.retry_delay.ToNanoseconds() / 1e9
    if pushback is not None and retry_after is None:
        retry_after = int(pushback) / 1000
    return _class_of(status.code, retry_after)(status.message, violations, retry_after)


def from_rpc(error: grpc.aio.AioRpcError) -> TreadleError:
    """The error that a failed call stands for. The codes of the upstream pass through unchanged."""
    trailers = dict(error.trailing_metadata() or ())
    status = status_pb2.Status()
    details = trailers.get(STATUS_DETAILS_KEY)
    if isinstance(details, bytes):
        status.ParseFromString(details)
    status.code = error.code().value[0]
    status.message = error.details() or ""
    pushback = trailers.get(PUSHBACK_KEY)
    return from_status(status, pushback=pushback if isinstance(pushback, str) else None)


def _class_of(code: int, retry_after: float | None) -> type[TreadleError]:
    if code == code_pb2.RESOURCE_EXHAUSTED:
        return Overloaded if retry_after is not None else StorageFull
    for cls in error_classes():
        if cls.code.value[0] == code:
            return cls
    return Internal  # UNKNOWN and other codes that no Treadle service sends


def _pack(message: error_details_pb2.BadRequest | error_details_pb2.RetryInfo) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(message)
    return packed
