"""The inference servicer around a model made by a test: real messages in and out, without network or registry."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from treadle.core.model_ref import ModelRef
from treadle.inference.api.admission import Limits
from treadle.inference.api.data_plane import Inferring
from treadle.inference.api.servicer import InferenceServicer
from treadle.inference.batching.metrics import ModelMeters, ModelObserver
from treadle.inference.batching.worker import Worker
from treadle.inference.models.models import Registered
from treadle.inference.models.repository import Repository, Tools
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

    async def describe(key: ModelRef) -> Registered:
        return Registered(key, "test", signature, {}, ())

    async def load(registered: Registered, worker: Worker) -> CheckedModel:
        return CheckedModel(model, signature)

    async def nothing(*_: Any) -> None:
        return

    tools = Tools(
        describe=describe,
        load=load,
        discard=nothing,
        observer=lambda key: ModelObserver(key, telemetry.tracer, meters),
        announce=nothing,
        limits=Limits(**limits),
        log=telemetry.log,
    )
    repository = Repository(tools)
    repository.pin([ModelRef.checked("m", 1)])
    await repository.loaded(ModelRef.checked("m", 1))
    manifests: Any = None  # asked only for models to load
    try:
        yield InferenceServicer(
            Inferring(repository, 100_000), manifests, save_pins=nothing, max_batch_rows=1024, stream_in_flight=64
        )
    finally:
        await repository.close()
