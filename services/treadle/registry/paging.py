"""Pages and page tokens. A token is opaque to callers and valid only for the list and filter that issued it."""

import base64
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

from treadle.core.errors import InvalidInput, Violation

T = TypeVar("T")
KeyT = TypeVar("KeyT", int, str)
_DEFAULT_SIZE = 100
_MAX_SIZE = 1000
_INT64_LIMIT = 2**63
# A page ends early before it exceeds this size: the default limit of a gRPC message is 4 MiB.
PAGE_BYTES = 2 << 20


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """Items, and the token of the next page (empty on the last page)."""

    items: list[T]
    next_token: str


def page_size(asked: int) -> int:
    """The page size asked for, 1 to 1000; 0 means 100. InvalidInput otherwise."""
    if not 0 <= asked <= _MAX_SIZE:
        raise InvalidInput(
            f"page_size is {asked}, wanted 0 to {_MAX_SIZE}", [Violation("page_size", f"must be 0 to {_MAX_SIZE}")]
        )
    return asked or _DEFAULT_SIZE


def encode_token(scope: str, last: str | int) -> str:
    """The token of the page that follows the key `last` in the list named `scope`."""
    return base64.urlsafe_b64encode(json.dumps([scope, last]).encode()).decode().rstrip("=")


def decode_token(scope: str, page_token: str, kind: type[KeyT]) -> KeyT | None:
    """The key after which the page begins; None for the first page. InvalidInput for a token of another list."""
    if not page_token:
        return None
    try:
        found = json.loads(base64.urlsafe_b64decode(page_token + "=" * (-len(page_token) % 4)))
    except ValueError:
        found = None
    match found:
        case [str(named), last] if named == scope and type(last) is kind and _fits_int64(last):
            return last
    raise InvalidInput(
        "page_token is not one that this list gave out: begin again without",
        [Violation("page_token", "must be a next_page_token of the same list with the same filter")],
    )


def take_page(
    scope: str, rows: Iterable[T], size: int, key: Callable[[T], str | int], row_bytes: Callable[[T], int]
) -> tuple[list[T], str]:
    """The rows of one page, and the token of the next page (empty on the last page).

    A page has at least one row, at most `size` rows and about `PAGE_BYTES`. `key` is the sort key of a row, `row_bytes`
    the size of its variable-length fields.
    """
    shown: list[T] = []
    total = 0
    for row in rows:
        total += row_bytes(row)
        if len(shown) == size or (shown and total > PAGE_BYTES):
            return shown, encode_token(scope, key(shown[-1]))
        shown.append(row)
    return shown, ""


def text_bytes(*texts: str) -> int:
    """The total size of texts in UTF-8 bytes."""
    return sum(len(text.encode()) for text in texts)


def _fits_int64(last: str | int) -> bool:
    return isinstance(last, str) or -_INT64_LIMIT <= last < _INT64_LIMIT
