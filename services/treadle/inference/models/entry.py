"""One model version of this process, and its state."""

import asyncio
from dataclasses import dataclass, field
from enum import StrEnum

from treadle.core.errors import TreadleError
from treadle.core.model_ref import ModelRef
from treadle.inference.api.infer_codec import Wire
from treadle.inference.batching.batcher import Batcher
from treadle.inference.batching.metrics import ModelObserver
from treadle.inference.batching.worker import Worker
from treadle.inference.models.models import Registered
from treadle.plugins.checked import CheckedModel


class State(StrEnum):
    """The names are those of the protocol."""

    LOADING = "LOADING"
    READY = "READY"
    UNLOADING = "UNLOADING"
    UNAVAILABLE = "UNAVAILABLE"


@dataclass(frozen=True, slots=True)
class Served:
    """A version in memory."""

    registered: Registered
    model: CheckedModel
    batcher: Batcher
    observer: ModelObserver
    worker: Worker
    wire: Wire


@dataclass(slots=True, eq=False)
class Entry:
    """One version and its state."""

    key: ModelRef
    state: State = State.LOADING
    error: TreadleError | None = None
    """What the last attempt to load, or to serve, failed of."""
    registered: Registered | None = None
    """Once it is known; its files may lie on disk from then on."""
    served: Served | None = None
    task: "asyncio.Task[None] | None" = None
    lingering: "asyncio.Task[None] | None" = None
    """Until it is let go of in the end."""
    settled: asyncio.Event = field(default_factory=asyncio.Event)
    """Set once the first attempt to load has ended."""

    @property
    def reason(self) -> str:
        """The text of `error`; empty without one."""
        return self.error.message if self.error else ""
