"""The inference servicer around a test's model: real messages, without network or registry."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from treadle.core.model_ref import ModelRef
from treadle.inference.api.admission import ModelLimits
from treadle.inference.api.data_plane import DataPlane
from treadle.inference.api.servicer import InferenceServicer
from treadle.inference.batching.metrics import ModelMeters, ModelObserver
from treadle.inference.batching.model_thread import ModelThread
from treadle.inference.models.models import RegisteredVersion
from treadle.inference.models.repository import Repository, RepositoryDependencies
from treadle.observability.telemetry.telemetry import Telemetry
from treadle.plugins.backend import LoadedModel
from treadle.plugins.checked import CheckedModel
from treadle.plugins.tensors import Signature


@asynccontextmanager
async def served(
    model: LoadedModel, signature: Signature, telemetry: Telemetry | None = None, **limits: Any
) -> AsyncIterator[Any]:
    """The servicer with `model` as version 1 of "m"; its methods take a context of None."""
    telemetry = telemetry or Telemetry.off("inference")
    meters = ModelMeters(telemetry.meters)

    async def describe(key: ModelRef) -> RegisteredVersion:
        return RegisteredVersion(key, "test", signature, {}, ())

    async def load(registered: RegisteredVersion, thread: ModelThread) -> CheckedModel:
        return CheckedModel(model, signature)

    async def nothing(*_: Any) -> None:
        return

    dependencies = RepositoryDependencies(
        describe=describe,
        load=load,
        discard=nothing,
        observer=lambda key: ModelObserver(key, telemetry.tracer, meters),
        announce=nothing,
        limits=ModelLimits(**limits),
        log=telemetry.log,
    )
    repository = Repository(dependencies)
    repository.pin([ModelRef.checked("m", 1)])
    await repository.wait_until_loaded(ModelRef.checked("m", 1))
    manifests: Any = None  # asked only for models to load
    try:
        yield InferenceServicer(
            DataPlane(repository, 100_000), manifests, save_pins=nothing, max_batch_rows=1024, stream_in_flight=64
        )
    finally:
        await repository.close()
