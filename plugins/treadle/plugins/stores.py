"""The online-store kind: the newest value of each entity and view, for lookups within requests.

Keys and values are opaque bytes: the feature service packs one row of a view into one value, so that an entity
takes one read. Stores are synchronous and thread-safe; the service calls them from threads.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from treadle.plugins.options import check_options


@dataclass(frozen=True)
class WriteCount:
    """The numbers of written and outdated rows of a write."""

    written: int
    outdated: int
    """Rows not written, because the store has a newer event for the key."""


@dataclass(frozen=True)
class ViewStats:
    """Size and freshness of a view."""

    entities: int
    newest_event_micros: int
    """Event time of the newest row; 0 when empty."""
    last_write_micros: int
    """When a write last ended; 0 if never."""


class OnlineStore(ABC):
    """An open online store. Times are microseconds since 1970-01-01T00:00:00Z."""

    @abstractmethod
    def write(self, view: str, rows: Iterable[tuple[bytes, int, bytes]]) -> WriteCount:
        """Stores `(key, event_micros, value)` unless the key has a newer event; an event of the same time is replaced.

        The rows of a call are stored all or none, and readers never see a part of a row. Raises StorageFull.
        """

    @abstractmethod
    def read(self, view: str, keys: Sequence[bytes]) -> list[tuple[int, bytes] | None]:
        """`(event_micros, value)` for each key, in order; None where there is none. Unknown views are empty."""

    def read_views(self, wants: Sequence[tuple[str, Sequence[bytes]]]) -> list[list[tuple[int, bytes] | None]]:
        """The result of `read` for each (view, keys). Override it for stores that can read them from one snapshot or in
        one round trip: a lookup reads all of its views at once."""
        return [self.read(view, keys) for view, keys in wants]

    @abstractmethod
    def stats(self, view: str) -> ViewStats:
        """Size and freshness of a view; must be cheap enough for a call every few seconds."""

    @abstractmethod
    def flush(self) -> None:
        """Makes all earlier writes durable."""

    @abstractmethod
    def close(self) -> None:
        """Flushes and closes the store. May be called more than once."""


class OnlineStoreKind(ABC):
    """A kind of online store, which plugins register: it opens stores."""

    name: ClassVar[str]
    options: ClassVar[Mapping[str, str]] = {}
    """Every option of `open`, with a line of help. Other options are an error."""

    @abstractmethod
    def open(self, folder: Path, options: Mapping[str, str]) -> OnlineStore:
        """Opens the store below `folder` (made if absent; stores that live elsewhere ignore it).

        Raises InvalidInput for wrong options, Unavailable if the store cannot be reached.
        """

    def check_options(self, options: Mapping[str, str]) -> None:
        """Raises InvalidInput, naming every option that this store does not have."""
        check_options(f"store {self.name!r}", self.options, options)
