"""The composition root of the features service: settings, storage, core, servicer."""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from treadle.core.errors import InvalidInput, TreadleError
from treadle.core.settings import Settings, bounds
from treadle.features.definition_store import DefinitionStore
from treadle.features.metrics import FeatureMeters
from treadle.features.online.lmdb_store import LmdbStoreKind
from treadle.features.online.lookups import OnlineFeatures
from treadle.features.online.transform_runner import TransformRunner
from treadle.features.servicer import FeatureServicer
from treadle.plugins.stores import OnlineStore
from treadle.rpc.app.runtime import Runtime
from treadle.v1 import features_pb2_grpc


@dataclass(frozen=True)
class FeatureSettings(Settings):
    """TREADLE_FEATURES_…"""

    store: str = "lmdb"
    """The online store: "lmdb", or the name of a store that a plugin provides."""
    store_options: str = ""
    """Options of the store: "host=10.0.0.7,port=6379"."""
    map_mib: Annotated[int, bounds(1, 1 << 26)] = 16_384
    """Size limit of the LMDB store in MiB. It reserves address space only; the file grows with its rows."""
    max_rows: Annotated[int, bounds(1, 10_000_000)] = 100_000
    """Maximum number of rows in one lookup or one pushed message."""
    transform_timeout_seconds: Annotated[float, bounds(0.001, 600)] = 2.0
    """Timeout of the request-time transforms of one lookup."""
    transform_workers: Annotated[int, bounds(1, 1_024)] = 2
    """Number of threads that run transforms."""


@asynccontextmanager
async def open_service(settings: FeatureSettings, runtime: Runtime) -> AsyncIterator[None]:
    """Opens the store and the definitions in the service's home, and registers the servicer.

    InvalidInput for a setting; NotFound for the store's plugin; DataLoss for damaged definitions; Unavailable when the
    store cannot be opened.
    """
    store = _open_store(settings, runtime.home / "online")
    runner = TransformRunner(settings.transform_workers)
    try:
        definitions = DefinitionStore(runtime.home / "definitions.json")
        online = OnlineFeatures(
            definitions,
            store,
            runner,
            max_rows=settings.max_rows,
            transform_timeout_seconds=settings.transform_timeout_seconds,
            clock=time.time,
        )
        servicer = FeatureServicer(
            definitions,
            online,
            FeatureMeters(runtime.telemetry.meters),
            redact_columns=lambda names: runtime.telemetry.redactor.add(*names),
        )
        features_pb2_grpc.add_FeatureServiceServicer_to_server(servicer, runtime.server)
        for name, plan in definitions.snapshot.plans.items():
            if isinstance(plan, TreadleError):
                runtime.telemetry.log.warning(
                    "feature service out of service", feature_service=name, reason=plan.message
                )
        yield
    finally:
        runner.close()
        store.close()


def _open_store(settings: FeatureSettings, folder: Path) -> OnlineStore:
    options = _options(settings.store_options)
    if settings.store == LmdbStoreKind.name:
        return LmdbStoreKind().open(folder, {"map_mib": str(settings.map_mib), **options})
    from treadle.plugins.manager import Plugins

    return Plugins.load().online_store(settings.store).open(folder, options)


def _options(text: str) -> dict[str, str]:
    options = {}
    for part in filter(None, text.split(",")):
        name, equals, value = part.partition("=")
        if not equals:
            raise InvalidInput("features: store_options must read name=value,name=value")
        options[name.strip()] = value.strip()
    return options
