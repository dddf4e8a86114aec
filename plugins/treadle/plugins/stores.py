"""The online-store kind: the newest value of each entity, by view, for lookups while a request waits.

Keys and values are opaque bytes: the features service packs one row of a view into one value, so that an entity
costs one read. Stores are synchronous and thread-safe; the service calls them from threads.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from treadle.plugins.options import check_options


@dataclass(frozen=True)
class WriteCount:
    """What became of the rows of one write."""

    written: int
    outdated: int
    """Left out because the store holds a newer event for the key."""


@dataclass(frozen=True)
class ViewStats:
    """How full and how fresh a view is."""

    entities: int
    newest_event_micros: int
    """Event time of the newest row; 0 when empty."""
    last_write_micros: int
    """When a write last ended; 0 if never."""


class OnlineStore(ABC):
    """An open store. Times are microseconds since 1970-01-01T00:00:00Z."""

    @abstractmethod
    def write(self, view: str, rows: Iterable[tuple[bytes, int, bytes]]) -> WriteCount:
        """Keeps `(key, event_micros, value)` unless the key already has a newer event; an equal one is replaced.

        All or nothing for the rows of one call; readers never see half a row. Raises StorageFull.
        """

    @abstractmethod
    def read(self, view: str, keys: Sequence[bytes]) -> list[tuple[int, bytes] | None]:
        """`(event_micros, value)` for each key, in order; None where there is none. Unknown views are empty."""

    def read_views(self, wants: Sequence[tuple[str, Sequence[bytes]]]) -> list[list[tuple[int, bytes] | None]]:
        """What `read` gives for each (view, keys). Override it if the store can answer all of them from one snapshot,
        or in one round trip: a lookup asks for all of its views at once."""
        return [self.read(view, keys) for view, keys in wants]

    @abstractmethod
    def stats(self, view: str) -> ViewStats:
        """Cheap enough to ask every few seconds."""

    @abstractmethod
    def flush(self) -> None:
        """Returns once everything written before will survive a crash."""

    @abstractmethod
    def close(self) -> None:
        """Flushes and closes. May be called more than once."""


class OnlineStoreKind(ABC):
    """What a plugin registers: opens stores of one kind."""

    name: ClassVar[str]
    options: ClassVar[Mapping[str, str]] = {}
    """Every option of `open`, with a line of help. Anything else is an error."""

    @abstractmethod
    def open(self, folder: Path, options: Mapping[str, str]) -> OnlineStore:
        """Opens the store below `folder` (made if absent; stores that live elsewhere ignore it).

        Raises InvalidInput for wrong options, Unavailable if the store cannot be reached.
        """

    def check_options(self, options: Mapping[str, str]) -> None:
        """Raises InvalidInput, naming every option that this store does not have."""
        check_options(f"store {self.name!r}", self.options, options)
