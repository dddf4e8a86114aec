"""Loading of a registered version: download, load, warm-up, comparison with its sample outputs."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from structlog.typing import FilteringBoundLogger

from treadle.core.errors import FailedPrecondition, TreadleError
from treadle.inference.batching.model_thread import ModelThread
from treadle.inference.batching.thread_tuner import ThreadChoice, ThreadTuner, available_cores
from treadle.inference.models.artifacts import ArtifactCache
from treadle.inference.models.models import RegisteredVersion
from treadle.plugins.backend import ModelSource
from treadle.plugins.checked import CheckedModel, load_verified
from treadle.plugins.compiling.comparing import Tolerance
from treadle.plugins.manager import Plugins


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """Options of loading."""

    threads: int
    """Threads that one `predict` may use; 0: chosen by measurement."""
    largest_batch: int
    """Maximum rows of a batch."""
    limit_seconds: float
    tolerance: float
    """Relative and absolute difference allowed between sample outputs now and when the model was made."""
    compiled: bool
    """Whether the compiled form of a model is preferred."""


@dataclass(frozen=True, slots=True)
class ModelLoader:
    """Loads model versions."""

    plugins: Plugins
    artifacts: ArtifactCache
    options: LoadOptions
    log: FilteringBoundLogger

    async def load(self, registered: RegisteredVersion, thread: ModelThread) -> CheckedModel:
        """The model, loaded on the thread that will run it. A TreadleError says why it cannot be used."""
        folder = await self.artifacts.prepare(registered)
        limit = self.options.limit_seconds
        try:
            return await asyncio.wait_for(thread.call(lambda: self._open(registered, folder)), limit)
        except TimeoutError:
            raise FailedPrecondition(
                f"loading took over {limit:g} s and was given up; its thread was abandoned"
            ) from None

    def _open(self, registered: RegisteredVersion, folder: Path) -> CheckedModel:
        """The compiled form if it exists and reproduces the sample outputs; else the original."""
        compiled = registered.compiled
        if compiled is not None and self.options.compiled:
            try:
                return self._load_form(
                    registered, compiled.backend, folder / compiled.folder, compiled.options, compiled.tolerance
                )
            except TreadleError as error:
                self.log.warning(
                    "the compiled form is not used, the original is", model=str(registered.key), reason=error.message
                )
        tolerance = Tolerance(self.options.tolerance, self.options.tolerance)
        return self._load_form(registered, registered.backend, folder, registered.options, tolerance)

    def _load_form(
        self,
        registered: RegisteredVersion,
        backend: str,
        folder: Path,
        options: Mapping[str, str],
        tolerance: Tolerance,
    ) -> CheckedModel:
        """Loads one form of the model, with the number of threads set or chosen by measurement."""
        plugin = self.plugins.backend(backend)

        def load(threads: int) -> CheckedModel:
            source = ModelSource(folder, registered.signature, options, threads)
            return load_verified(plugin, source, registered.sample, tolerance)

        if self.options.threads:
            chosen = ThreadChoice(load(self.options.threads), self.options.threads, "as set")
        else:
            chosen = ThreadTuner(load, registered.sample.inputs, self.options.largest_batch).choose(available_cores())
        self.log.info(
            "model loaded", model=str(registered.key), by=backend, threads=chosen.threads, because=chosen.reason
        )
        return chosen.model
