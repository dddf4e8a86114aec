"""Features: lookup, push, definitions, freshness."""

from collections.abc import AsyncIterator, Iterable, Sequence
from datetime import datetime
from functools import cached_property
from typing import Any, NamedTuple

from treadle.client.connection import Connection
from treadle.client.tables import Feature, Table, as_column, to_columns, to_feature, to_micros, to_optional_micros
from treadle.rpc.codec.columns import encode_all
from treadle.v1 import features_pb2, features_pb2_grpc

_ROWS_PER_MESSAGE = 10_000


class PushResult(NamedTuple):
    """Rows written by the online store, and rows that were older than its own."""

    rows: int
    outdated: int
    """Rows older than the stored ones, which were dropped."""


class Features(Connection):
    """The feature methods of a client."""

    @cached_property
    def _features(self) -> "features_pb2_grpc.FeatureServiceAsyncStub":
        return features_pb2_grpc.FeatureServiceStub(self.channel)

    async def get_features(
        self,
        feature_service: str,
        entities: Table,
        context: Table | None = None,
        *,
        outputs: Sequence[str] = (),
        now: datetime | None = None,
    ) -> dict[str, Feature]:
        """The latest values for N entities, by feature name, each with status and age; ages are counted from `now`."""
        request = features_pb2.GetOnlineFeaturesRequest(
            feature_service=feature_service,
            entities=to_columns(entities),
            context=to_columns(context),
            outputs=outputs,
            now_micros=to_optional_micros(now),
        )
        response = await self._features.GetOnlineFeatures(request)
        return {feature.column.name: to_feature(feature) for feature in response.features}

    async def push_features(self, view: str, rows: Table, event_times: Any) -> PushResult:
        """Writes N rows (entity and field columns) of a view to the online store; durable when this returns.

        `event_times`: when the values became known, N of them or one for all (datetimes, datetime64, microseconds).
        """
        response = await self._features.Push(_push_requests(view, rows, event_times))
        return PushResult(response.rows_written, response.rows_outdated)

    async def apply_features(
        self,
        views: Iterable[features_pb2.FeatureView] = (),
        services: Iterable[features_pb2.FeatureServiceSpec] = (),
        *,
        dry_run: bool = False,
    ) -> list[features_pb2.FeatureChange]:
        """Creates or changes views and feature services atomically; returns the changes. `dry_run` applies none."""
        request = features_pb2.ApplyFeaturesRequest(views=views, services=services, dry_run=dry_run)
        return list((await self._features.ApplyFeatures(request)).changes)

    async def feature_views(self) -> list[features_pb2.FeatureView]:
        """Every view."""
        return list((await self._features.ListFeatureViews(features_pb2.ListFeatureViewsRequest())).views)

    async def feature_services(self, *names: str) -> features_pb2.ListFeatureServicesResponse:
        """Feature services by name (all without names), and the views that they use."""
        return await self._features.ListFeatureServices(features_pb2.ListFeatureServicesRequest(names=names))

    async def freshness(self, *views: str, now: datetime | None = None) -> list[features_pb2.ViewFreshness]:
        """The freshness of views; all views without names."""
        request = features_pb2.GetFreshnessRequest(views=views, now_micros=to_optional_micros(now))
        return list((await self._features.GetFreshness(request)).views)


async def _push_requests(view: str, rows: Table, event_times: Any) -> AsyncIterator[features_pb2.PushRequest]:
    """Slices of the rows, each written whole or not at all."""
    columns = [as_column(name, values) for name, values in rows.items()]
    count = max((column.rows for column in columns), default=0)
    moments = to_micros(event_times, count)
    for start in range(0, count, _ROWS_PER_MESSAGE):
        part = slice(start, start + _ROWS_PER_MESSAGE)
        encoded = encode_all(column.take(part) for column in columns)
        yield features_pb2.PushRequest(view=view, columns=encoded, event_micros=moments[part])
