"""One model version of this process, and its lifecycle state."""

import asyncio
from dataclasses import dataclass, field
from enum import StrEnum

from treadle.core.errors import TreadleError
from treadle.core.model_ref import ModelRef
from treadle.inference.api.infer_codec import InferCodec
from treadle.inference.batching.batcher import Batcher
from treadle.inference.batching.metrics import ModelObserver
from treadle.inference.batching.model_thread import ModelThread
from treadle.inference.models.models import RegisteredVersion
from treadle.plugins.checked import CheckedModel


class ModelState(StrEnum):
    """Lifecycle states, as the protocol names them."""

    LOADING = "LOADING"
    READY = "READY"
    UNLOADING = "UNLOADING"
    UNAVAILABLE = "UNAVAILABLE"


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A loaded version, ready to run requests."""

    registered: RegisteredVersion
    model: CheckedModel
    batcher: Batcher
    observer: ModelObserver
    thread: ModelThread
    codec: InferCodec


@dataclass(slots=True, eq=False)
class ModelEntry:
    """A version in the repository, with its state and tasks."""

    key: ModelRef
    state: ModelState = ModelState.LOADING
    error: TreadleError | None = None
    """The error of the last attempt to load, or of a hung model."""
    registered: RegisteredVersion | None = None
    """Set once the registry has described it; from then on its files may be on disk."""
    served: ServedModel | None = None
    task: "asyncio.Task[None] | None" = None
    linger_task: "asyncio.Task[None] | None" = None
    """The delayed unload of a version that is no longer needed."""
    load_attempted: asyncio.Event = field(default_factory=asyncio.Event)
    """Set once the first attempt to load has ended."""

    @property
    def reason(self) -> str:
        """The text of `error`; empty without one."""
        return self.error.message if self.error else ""
