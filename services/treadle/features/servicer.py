"""`treadle.v1.FeatureService`: decode, call the core, encode."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any

import numpy as np

from treadle.features import definition_codec as codec
from treadle.features.definition_store import Catalog
from treadle.features.metrics import FeatureMeters
from treadle.features.online.lookups import OnlineFeatures
from treadle.rpc.codec.columns import decode_all
from treadle.rpc.codec.feature_columns import encode_feature
from treadle.rpc.codec.protobuf_wire import field
from treadle.rpc.context import remaining
from treadle.v1 import features_pb2 as pb
from treadle.v1 import features_pb2_grpc


class FeatureServicer(features_pb2_grpc.FeatureServiceServicer):
    """Raises TreadleError subclasses; the server turns them into statuses."""

    def __init__(
        self, catalog: Catalog, online: OnlineFeatures, meters: FeatureMeters, *, hide: Callable[[Iterable[str]], None]
    ) -> None:
        """`hide` is told the names of columns whose values must not be shown, at once and after each change."""
        self._catalog = catalog
        self._online = online
        self._meters = meters
        self._hide = hide
        hide(catalog.state.sensitive())

    async def ApplyFeatures(self, request: pb.ApplyFeaturesRequest, context: Any) -> pb.ApplyFeaturesResponse:
        """Off the event loop: importing user modules and writing to disk take their time."""
        definitions = codec.from_request(request)
        changes = await asyncio.to_thread(self._catalog.apply, definitions, dry_run=request.dry_run)
        self._hide(self._catalog.state.sensitive())
        return pb.ApplyFeaturesResponse(
            changes=[
                pb.FeatureChange(
                    object=each.object,
                    name=each.name,
                    kind=pb.FeatureChange.Kind.ValueType(each.kind),
                    differences=each.differences,
                )
                for each in changes
            ]
        )

    async def ListFeatureViews(self, request: pb.ListFeatureViewsRequest, context: Any) -> pb.ListFeatureViewsResponse:
        """All views."""
        views = self._catalog.state.views.values()
        return pb.ListFeatureViewsResponse(views=[codec.view_to_proto(each) for each in views])

    async def ListFeatureServices(
        self, request: pb.ListFeatureServicesRequest, context: Any
    ) -> pb.ListFeatureServicesResponse:
        """Some services or all, with the views that they name."""
        state = self._catalog.state
        services = [state.service(name) for name in request.names or state.services]
        views = dict.fromkeys(each.view for service in services for each in service.feature_sets)
        return pb.ListFeatureServicesResponse(
            services=[codec.service_to_proto(each) for each in services],
            views=[codec.view_to_proto(state.views[name]) for name in views],
        )

    async def GetOnlineFeatures(
        self, request: pb.GetOnlineFeaturesRequest, context: Any
    ) -> pb.GetOnlineFeaturesResponse:
        """N entities in one read."""
        features = await self._online.lookup(
            request.feature_service,
            decode_all(request.entities, "entities"),
            decode_all(request.context, "context"),
            now_micros=request.now_micros,
            outputs=request.outputs,
            remaining_seconds=remaining(),
        )
        self._meters.looked_up(request.feature_service, features)
        return pb.GetOnlineFeaturesResponse.FromString(
            b"".join([field(_FEATURES, encode_feature(each.column, each.statuses, each.ages)) for each in features])
        )

    async def Push(self, request_iterator: AsyncIterator[pb.PushRequest], context: Any) -> pb.PushResponse:
        """Messages in order, each whole; the answer comes when all are on disk, also those before a bad one."""
        written = outdated = 0
        try:
            async for request in request_iterator:
                columns = decode_all(request.columns)
                events = np.array(request.event_micros, np.int64)
                count = await asyncio.to_thread(self._online.push, request.view, columns, events)
                self._meters.pushed(request.view, count)
                written += count.written
                outdated += count.outdated
        finally:
            await asyncio.to_thread(self._online.flush)
        return pb.PushResponse(rows_written=written, rows_outdated=outdated)

    async def GetFreshness(self, request: pb.GetFreshnessRequest, context: Any) -> pb.GetFreshnessResponse:
        """Of some views or all."""
        found = self._online.freshness(request.views, request.now_micros)
        return pb.GetFreshnessResponse(views=[pb.ViewFreshness(**vars(each)) for each in found])


_FEATURES = pb.GetOnlineFeaturesResponse.FEATURES_FIELD_NUMBER
