"""Online lookups and writes: the core of the features service, independent of protobuf and gRPC.

A lookup checks the request, reads all entities of all views at once, unpacks the rows into columns and runs transforms.
"""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from treadle.core.column import Column
from treadle.core.errors import InvalidInput, Violation
from treadle.features.definition_store import DefinitionSnapshot, DefinitionStore
from treadle.features.definitions import FeatureView
from treadle.features.lookup_plan import LookupPlan
from treadle.features.online.keys import encode_keys
from treadle.features.online.packing import unpack_rows
from treadle.features.online.requests import check_rows, coerce_columns
from treadle.features.online.transform_runner import TransformRunner
from treadle.features.transforms import run_transforms
from treadle.features.values import FeatureResult, context_feature, view_features
from treadle.plugins.stores import OnlineStore, WriteCount

#: Up to this many keys are read on the event loop: about 2 µs each, less than a switch to a thread and back.
_MAX_INLINE_KEYS: Final = 256
_MICROS_A_SECOND: Final = 1_000_000


@dataclass(frozen=True)
class Freshness:
    """Freshness of one view. Times are microseconds since 1970 UTC, 0 when the view has no rows."""

    view: str
    entities: int
    newest_event_micros: int
    last_write_micros: int
    age_seconds: float
    """Age of the newest event; NaN when the view has no rows."""
    freshness_seconds: float
    """The freshness limit; 0 means none."""
    fresh: bool
    """Whether the newest event is within the limit; False for a view without rows."""


class OnlineFeatures:
    """Reads and writes features by entity."""

    def __init__(
        self,
        definitions: DefinitionStore,
        store: OnlineStore,
        runner: TransformRunner,
        *,
        max_rows: int = 100_000,
        transform_timeout_seconds: float = 2.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._definitions = definitions
        self._store = store
        self._runner = runner
        self._max_rows = max_rows
        self._transform_timeout = transform_timeout_seconds
        self._clock = clock

    async def lookup(
        self,
        service: str,
        entities: Mapping[str, Column],
        context: Mapping[str, Column],
        *,
        now_micros: int = 0,
        outputs: Sequence[str] = (),
        remaining_seconds: float | None = None,
    ) -> list[FeatureResult]:
        """The outputs of a feature service for N entities, in order.

        `now_micros` is the time from which ages are counted; 0 means the clock. NotFound for the feature service;
        InvalidInput for columns; FailedPrecondition for a transform that fails; DeadlineExceeded for transforms that
        take longer than the service's timeout or `remaining_seconds`.
        """
        snapshot = self._definitions.snapshot
        plan = snapshot.plan(service, tuple(outputs))
        rows = check_rows({"entities": entities, "context": context}, self._max_rows)
        accepted = plan.accepted_entities
        keys = coerce_columns(entities, accepted, [e.name for e in plan.entities], "entities", not_null=accepted)
        given = coerce_columns(context, plan.accepted_context, [c.name for c in plan.context], "context")
        now = np.full(rows, now_micros or self._now(), np.int64)
        if rows * len(plan.views) <= _MAX_INLINE_KEYS:
            features = self._read(snapshot, plan, keys, now)
        else:
            features = await asyncio.to_thread(self._read, snapshot, plan, keys, now)
        for field in plan.context:
            features[field.name] = context_feature(given[field.name])
        if plan.transforms:
            timeout = (
                self._transform_timeout
                if remaining_seconds is None
                else min(self._transform_timeout, remaining_seconds)
            )
            made = await self._runner.run(
                lambda: run_transforms(plan.transforms, features, rows), timeout, f"feature service {service!r}"
            )
            features.update(made)
        return [features[name] for name in plan.outputs]

    def push(self, view: str, columns: Mapping[str, Column], event_micros: NDArray[np.int64]) -> WriteCount:
        """Writes N rows of a view atomically. Blocks on the disk: call it from a thread.

        `event_micros` has N elements. NotFound for the view; InvalidInput for columns; StorageFull.
        """
        snapshot = self._definitions.snapshot
        definition = snapshot.view(view)
        where = f"columns of {view}"
        rows = check_rows({where: columns}, self._max_rows)
        if len(event_micros) != rows:
            what = f"{len(event_micros)} event times for {rows} rows; give one for each row"
            raise InvalidInput(what, [Violation("event_micros", what)])
        known = {each.name: each for each in definition.columns()}
        coerced = coerce_columns(columns, known, known, where, not_null=[each.name for each in definition.entities])
        keys = encode_keys(definition.entities, coerced, where)
        packed = snapshot.write_layout(definition).pack(coerced)
        return self._store.write(view, zip(keys, event_micros.tolist(), packed, strict=True))

    def flush(self) -> None:
        """Returns when all pushed rows will survive a machine crash. Blocks on the disk."""
        self._store.flush()

    def freshness(self, views: Sequence[str], now_micros: int = 0) -> list[Freshness]:
        """The freshness of some views, or of all. NotFound for an unknown view."""
        snapshot = self._definitions.snapshot
        now = now_micros or self._now()
        return [self._freshness_of(snapshot.view(name), now) for name in views or snapshot.views]

    def _freshness_of(self, view: FeatureView, now: int) -> Freshness:
        stats = self._store.stats(view.name)
        empty = not stats.entities
        age_micros = now - stats.newest_event_micros
        limit = view.freshness_micros
        return Freshness(
            view.name,
            stats.entities,
            0 if empty else stats.newest_event_micros,
            stats.last_write_micros,
            float("nan") if empty else age_micros / _MICROS_A_SECOND,
            0.0 if limit is None else limit / _MICROS_A_SECOND,
            not empty and (limit is None or age_micros <= limit),
        )

    def _read(
        self, snapshot: DefinitionSnapshot, plan: LookupPlan, columns: Mapping[str, Column], now: NDArray[np.int64]
    ) -> dict[str, FeatureResult]:
        """The plan's view features by full name; blocks while the store reads."""
        encoded: dict[tuple[str, ...], list[bytes]] = {}
        wants: list[tuple[str, list[bytes]]] = []
        for each in plan.views:
            names = tuple(entity.name for entity in each.view.entities)
            if names not in encoded:
                encoded[names] = encode_keys(each.view.entities, columns, "entities")
            wants.append((each.view.name, encoded[names]))
        features: dict[str, FeatureResult] = {}
        for each, found in zip(plan.views, self._store.read_views(wants), strict=True):
            layouts = {layout.number: layout for layout in snapshot.layouts[each.view.name]}
            rows = unpack_rows(found, each.columns, layouts)
            features.update(view_features(each.features, each.fields, rows, now, each.view.freshness_micros))
        return features

    def _now(self) -> int:
        return int(self._clock() * _MICROS_A_SECOND)
