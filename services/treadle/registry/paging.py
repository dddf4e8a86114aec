"""Page tokens: opaque to callers, bound to the list and the filter that they came from."""

import base64
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

from treadle.core.errors import InvalidInput, Violation

T = TypeVar("T")
KeyT = TypeVar("KeyT", int, str)
_DEFAULT = 100
_LARGEST = 1000
_INT64 = 2**63
# A page ends early rather than grow beyond this: a message of gRPC is 4 MiB by default.
PAGE_BYTES = 2 << 20


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """Some items, and the token for more (empty: there are no more)."""

    items: list[T]
    next_token: str


def page_size(asked: int) -> int:
    """1 to 1000; 0 means 100."""
    if not 0 <= asked <= _LARGEST:
        raise InvalidInput(
            f"page_size is {asked}, wanted 0 to {_LARGEST}", [Violation("page_size", f"must be 0 to {_LARGEST}")]
        )
    return asked or _DEFAULT


def token(scope: str, last: str | int) -> str:
    """The token for what follows `last` in the list named `scope`."""
    return base64.urlsafe_b64encode(json.dumps([scope, last]).encode()).decode().rstrip("=")


def after(scope: str, page_token: str, kind: type[KeyT]) -> KeyT | None:
    """Where a page begins: after this key, or None for the first page. InvalidInput for another list's token."""
    if not page_token:
        return None
    try:
        found = json.loads(base64.urlsafe_b64decode(page_token + "=" * (-len(page_token) % 4)))
    except ValueError:
        found = None
    match found:
        case [str(named), last] if named == scope and type(last) is kind and _fits(last):
            return last
    raise InvalidInput(
        "page_token is not one that this list gave out: begin again without",
        [Violation("page_token", "must be a next_page_token of the same list with the same filter")],
    )


def cut(
    scope: str, rows: Iterable[T], size: int, key: Callable[[T], str | int], weight: Callable[[T], int]
) -> tuple[list[T], str]:
    """The rows of one page, and the token for more (empty: there are no more).

    At most `size` rows and about `PAGE_BYTES`, but at least one. `key` is what the list is sorted by, `weight` the
    bytes of all that may grow large in a row.
    """
    shown: list[T] = []
    total = 0
    for row in rows:
        total += weight(row)
        if len(shown) == size or (shown and total > PAGE_BYTES):
            return shown, token(scope, key(shown[-1]))
        shown.append(row)
    return shown, ""


def weigh(*texts: str) -> int:
    """The bytes of texts on the wire."""
    return sum(len(text.encode()) for text in texts)


def _fits(last: str | int) -> bool:
    return isinstance(last, str) or -_INT64 <= last < _INT64
