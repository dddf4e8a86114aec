"""From a registered version to a model that has shown that it answers as it should."""

import asyncio
from dataclasses import dataclass

from treadle.inference.artifacts import Artifacts
from treadle.inference.models import Registered
from treadle.inference.worker import Worker
from treadle.plugins.backend import ModelSource
from treadle.plugins.checked import CheckedModel, load_proven
from treadle.plugins.manager import Plugins
from treadle.rpc.errors import FailedPrecondition


@dataclass(frozen=True, slots=True)
class Loader:
    """Fetches, verifies, loads, warms up, compares."""

    plugins: Plugins
    artifacts: Artifacts
    threads: int
    """Threads that one `predict` may use."""
    limit_seconds: float
    tolerance: float
    """Relative difference allowed between sample outputs now and when the model was made."""

    async def load(self, registered: Registered, worker: Worker) -> CheckedModel:
        """The model, loaded on the thread that will run it. Any TreadleError says why it cannot be used."""
        folder = await self.artifacts.prepare(registered)
        source = ModelSource(folder, registered.signature, registered.options, self.threads)
        try:
            return await asyncio.wait_for(worker.call(lambda: self._open(registered, source)), self.limit_seconds)
        except TimeoutError:
            raise FailedPrecondition(
                f"loading took over {self.limit_seconds:g} s and was given up; its thread was abandoned"
            ) from None

    def _open(self, registered: Registered, source: ModelSource) -> CheckedModel:
        return load_proven(self.plugins.backend(registered.backend), source, registered.sample, self.tolerance)
