"""From a registered version to a model that has shown that it answers as it should."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from structlog.typing import FilteringBoundLogger

from treadle.core.errors import FailedPrecondition, TreadleError
from treadle.inference.batching.threads import Chosen, Trial, cores
from treadle.inference.batching.worker import Worker
from treadle.inference.models.artifacts import Artifacts
from treadle.inference.models.models import Registered
from treadle.plugins.backend import ModelSource
from treadle.plugins.checked import CheckedModel, load_verified
from treadle.plugins.compiling.comparing import Tolerance
from treadle.plugins.manager import Plugins


@dataclass(frozen=True, slots=True)
class Loading:
    """How models are loaded."""

    threads: int
    """Threads that one `predict` may use; 0: as many as a measurement finds good."""
    largest_batch: int
    """Rows."""
    limit_seconds: float
    tolerance: float
    """Relative and absolute difference allowed between sample outputs now and when the model was made."""
    compiled: bool
    """Whether the compiled form of a model is preferred."""


@dataclass(frozen=True, slots=True)
class Loader:
    """Fetches, verifies, loads, warms up, compares."""

    plugins: Plugins
    artifacts: Artifacts
    how: Loading
    log: FilteringBoundLogger

    async def load(self, registered: Registered, worker: Worker) -> CheckedModel:
        """The model, loaded on the thread that will run it. Any TreadleError says why it cannot be used."""
        folder = await self.artifacts.prepare(registered)
        limit = self.how.limit_seconds
        try:
            return await asyncio.wait_for(worker.call(lambda: self._open(registered, folder)), limit)
        except TimeoutError:
            raise FailedPrecondition(
                f"loading took over {limit:g} s and was given up; its thread was abandoned"
            ) from None

    def _open(self, registered: Registered, folder: Path) -> CheckedModel:
        """The compiled form where there is one that answers as the original did; else the original."""
        compiled = registered.compiled
        if compiled is not None and self.how.compiled:
            try:
                return self._tuned(
                    registered, compiled.backend, folder / compiled.folder, compiled.options, compiled.tolerance
                )
            except TreadleError as error:
                self.log.warning(
                    "the compiled form is not used, the original is", model=str(registered.key), reason=error.message
                )
        tolerance = Tolerance(self.how.tolerance, self.how.tolerance)
        return self._tuned(registered, registered.backend, folder, registered.options, tolerance)

    def _tuned(
        self, registered: Registered, backend: str, folder: Path, options: Mapping[str, str], tolerance: Tolerance
    ) -> CheckedModel:
        """One form of the model, with its threads."""
        runner = self.plugins.backend(backend)

        def load(threads: int) -> CheckedModel:
            source = ModelSource(folder, registered.signature, options, threads)
            return load_verified(runner, source, registered.sample, tolerance)

        if self.how.threads:
            chosen = Chosen(load(self.how.threads), self.how.threads, "as set")
        else:
            chosen = Trial(load, registered.sample.inputs, self.how.largest_batch).fewest(cores())
        self.log.info("model loaded", model=str(registered.key), by=backend, threads=chosen.threads, because=chosen.why)
        return chosen.model
