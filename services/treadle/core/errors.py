"""Every error that crosses a Treadle wire.

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
    ├── Unavailable         UNAVAILABLE          retry: not ready, or gone for now
    ├── DeadlineExceeded    DEADLINE_EXCEEDED
    ├── Cancelled           CANCELLED
    ├── DataLoss            DATA_LOSS            stored bytes are not what they were
    ├── Unimplemented       UNIMPLEMENTED
    └── Internal            INTERNAL             a fault of ours

Servicers raise these; the server seam turns them into a status, the client seam turns the status back.
Messages say what was wrong, where, and what to do. They never hold values of columns, which may be sensitive.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import grpc
import grpc.aio
from google.protobuf import any_pb2, duration_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2

PUSHBACK = "grpc-retry-pushback-ms"
DETAILS = "grpc-status-details-bin"


@dataclass(frozen=True, slots=True)
class Violation:
    """One thing wrong with one field of a request: `entities[1].values`, "has 3 rows, wanted 2"."""

    field: str
    description: str


class TreadleError(Exception):
    """The base: never raised itself. Each class owns its gRPC code and whether a retry can help."""

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
        """A new error of the same class and details, with its own traceback; `message` replaces the text if given."""
        return type(self)(message or self.message, self.violations, self.retry_after_seconds)

    def to_status(self) -> status_pb2.Status:
        """The rich status: code, message, and `BadRequest` or `RetryInfo` details where they apply."""
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
        """What travels beside code and message: the rich status, and the pushback for retrying clients."""
        trailers: list[tuple[str, str | bytes]] = []
        if self.violations or self.retry_after_seconds is not None:
            trailers.append((DETAILS, self.to_status().SerializeToString()))
        if self.retry_after_seconds is not None:
            trailers.append((PUSHBACK, str(int(self.retry_after_seconds * 1000))))
        return tuple(trailers)


class InvalidInput(TreadleError):
    """The request can never succeed as it is."""

    code = grpc.StatusCode.INVALID_ARGUMENT

    @classmethod
    def at(cls, field: str, what: str) -> "InvalidInput":
        """One field is wrong: `at("entities[origin]", "has 3 rows where the others have 2")`."""
        return cls(f"{field} {what}", [Violation(field, what)])


class NotFound(TreadleError):
    """What the request names does not exist."""

    code = grpc.StatusCode.NOT_FOUND


class AlreadyExists(TreadleError):
    """The name is taken."""

    code = grpc.StatusCode.ALREADY_EXISTS


class FailedPrecondition(TreadleError):
    """The request is right, but the state it needs is not there; retrying alone will not help."""

    code = grpc.StatusCode.FAILED_PRECONDITION


class Conflict(TreadleError):
    """Someone else changed the same thing first: read it again, decide again."""

    code = grpc.StatusCode.ABORTED


class OutOfRange(TreadleError):
    """A cursor or page token that belongs to another history."""

    code = grpc.StatusCode.OUT_OF_RANGE


class Unauthenticated(TreadleError):
    """No valid credential."""

    code = grpc.StatusCode.UNAUTHENTICATED


class PermissionDenied(TreadleError):
    """A valid credential without the right."""

    code = grpc.StatusCode.PERMISSION_DENIED


class Overloaded(TreadleError):
    """Too much at once; `retry_after_seconds` says when to come back."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED
    retryable = True

    def __init__(
        self, message: str, violations: Sequence[Violation] = (), retry_after_seconds: float | None = 0.1
    ) -> None:
        super().__init__(message, violations, retry_after_seconds)


class StorageFull(TreadleError):
    """No room to write; nothing was written."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED


class Unavailable(TreadleError):
    """Not ready yet, or unreachable for now."""

    code = grpc.StatusCode.UNAVAILABLE
    retryable = True


class DeadlineExceeded(TreadleError):
    """The caller's time ran out."""

    code = grpc.StatusCode.DEADLINE_EXCEEDED


class Cancelled(TreadleError):
    """The caller went away."""

    code = grpc.StatusCode.CANCELLED


class DataLoss(TreadleError):
    """Stored bytes are not what they were when they were stored."""

    code = grpc.StatusCode.DATA_LOSS


class Unimplemented(TreadleError):
    """The server does not know this RPC."""

    code = grpc.StatusCode.UNIMPLEMENTED


class Internal(TreadleError):
    """A fault of the server. Callers see an error id; the log has the rest."""

    code = grpc.StatusCode.INTERNAL


def every_class() -> Iterator[type[TreadleError]]:
    """All concrete classes, in the order of the tree above."""
    return iter(TreadleError.__subclasses__())


def from_status(status: status_pb2.Status, *, pushback: str | None = None) -> TreadleError:
    """The error that a rich status stands for."""
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
    """The error behind a failed call. Upstream codes pass through unchanged."""
    trailers = dict(error.trailing_metadata() or ())
    status = status_pb2.Status()
    details = trailers.get(DETAILS)
    if isinstance(details, bytes):
        status.ParseFromString(details)
    status.code = error.code().value[0]
    status.message = error.details() or ""
    pushback = trailers.get(PUSHBACK)
    return from_status(status, pushback=pushback if isinstance(pushback, str) else None)


def _class_of(code: int, retry_after: float | None) -> type[TreadleError]:
    if code == code_pb2.RESOURCE_EXHAUSTED:
        return Overloaded if retry_after is not None else StorageFull
    for cls in every_class():
        if cls.code.value[0] == code:
            return cls
    return Internal  # UNKNOWN and the like: nothing that we raise


def _pack(message: error_details_pb2.BadRequest | error_details_pb2.RetryInfo) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(message)
    return packed
