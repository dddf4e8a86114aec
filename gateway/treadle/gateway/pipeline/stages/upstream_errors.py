"""What an error of an upstream means for the requests of a batch."""

from treadle.core.errors import (
    Cancelled,
    DeadlineExceeded,
    InvalidInput,
    NotFound,
    OutOfRange,
    Overloaded,
    PermissionDenied,
    TreadleError,
    Unauthenticated,
    Unavailable,
    Unimplemented,
)

CLIENT_ERRORS = (InvalidInput, OutOfRange, Unauthenticated, PermissionDenied, Cancelled)
"""The caller's to mend: no other version would judge these differently."""
BATCH_WIDE_ERRORS = (
    Cancelled,
    DeadlineExceeded,
    NotFound,
    Overloaded,
    PermissionDenied,
    Unauthenticated,
    Unavailable,
    Unimplemented,
)
"""Errors of the upstream as a whole, or of what all requests of a batch have in common: no request alone would fare
better."""


class error_prefix:  # noqa: N801  # used as a statement, as contextlib's own
    """Puts a name in front of the message of an error that is not the caller's: "features: UNAVAILABLE: …"."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __enter__(self) -> None: ...

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if isinstance(error, TreadleError) and not isinstance(error, CLIENT_ERRORS):
            text = f"{self._name}: {error.code.name}: {error.message}"
            raise error.clone(text) from error
