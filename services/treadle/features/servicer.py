"""The gRPC servicer of `treadle.v1.FeatureService`: decodes requests, calls the core, encodes responses."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any

import numpy as np

from treadle.features import definition_codec as codec
from treadle.features.definition_store import DefinitionStore
from treadle.features.metrics import FeatureMeters
from treadle.features.online.lookups import OnlineFeatures
from treadle.rpc.codec.columns import decode_all
from treadle.rpc.codec.feature_columns import encode_feature
from treadle.rpc.codec.protobuf_wire import field
from treadle.rpc.context import remaining
from treadle.v1 import features_pb2 as pb
from treadle.v1 import features_pb2_grpc


class FeatureServicer(features_pb2_grpc.FeatureServiceServicer):
    """Raises TreadleError subclasses; the server maps them to gRPC statuses."""

    def __init__(
        self,
        definitions: DefinitionStore,
        online: OnlineFeatures,
        meters: FeatureMeters,
        *,
        redact_columns: Callable[[Iterable[str]], None],
    ) -> None:
        """`redact_columns` is called with the names of sensitive columns, now and after each change of definitions."""
        self._definitions = definitions
        self._online = online
        self._meters = meters
        self._redact_columns = redact_columns
        redact_columns(definitions.snapshot.sensitive_columns())

    async def ApplyFeatures(self, request: pb.ApplyFeaturesRequest, context: Any) -> pb.ApplyFeaturesResponse:
        """Applies definitions on a thread, because it imports user modules and writes to disk."""
        definitions = codec.from_apply_request(request)
        changes = await asyncio.to_thread(self._definitions.apply, definitions, dry_run=request.dry_run)
        self._redact_columns(self._definitions.snapshot.sensitive_columns())
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
        views = self._definitions.snapshot.views.values()
        return pb.ListFeatureViewsResponse(views=[codec.view_to_proto(each) for each in views])

    async def ListFeatureServices(
        self, request: pb.ListFeatureServicesRequest, context: Any
    ) -> pb.ListFeatureServicesResponse:
        """Some feature services or all, with the views that they name."""
        snapshot = self._definitions.snapshot
        services = [snapshot.service(name) for name in request.names or snapshot.services]
        views = dict.fromkeys(each.view for service in services for each in service.feature_sets)
        return pb.ListFeatureServicesResponse(
            services=[codec.service_to_proto(each) for each in services],
            views=[codec.view_to_proto(snapshot.views[name]) for name in views],
        )

    async def GetOnlineFeatures(
        self, request: pb.GetOnlineFeaturesRequest, context: Any
    ) -> pb.GetOnlineFeaturesResponse:
        """Looks up N entities in one read."""
        features = await self._online.lookup(
            request.feature_service,
            decode_all(request.entities, "entities"),
            decode_all(request.context, "context"),
            now_micros=request.now_micros,
            outputs=request.outputs,
            remaining_seconds=remaining(),
        )
        self._meters.record_lookup(request.feature_service, features)
        return pb.GetOnlineFeaturesResponse.FromString(
            b"".join([field(_FEATURES, encode_feature(each.column, each.statuses, each.ages)) for each in features])
        )

    async def Push(self, request_iterator: AsyncIterator[pb.PushRequest], context: Any) -> pb.PushResponse:
        """Writes messages in order, each atomically; flushes to disk at the end, also after an invalid message."""
        written = outdated = 0
        try:
            async for request in request_iterator:
                columns = decode_all(request.columns)
                events = np.array(request.event_micros, np.int64)
                count = await asyncio.to_thread(self._online.push, request.view, columns, events)
                self._meters.record_push(request.view, count)
                written += count.written
                outdated += count.outdated
        finally:
            await asyncio.to_thread(self._online.flush)
        return pb.PushResponse(rows_written=written, rows_outdated=outdated)

    async def GetFreshness(self, request: pb.GetFreshnessRequest, context: Any) -> pb.GetFreshnessResponse:
        """The freshness of some views or all."""
        found = self._online.freshness(request.views, request.now_micros)
        return pb.GetFreshnessResponse(views=[pb.ViewFreshness(**vars(each)) for each in found])


_FEATURES = pb.GetOnlineFeaturesResponse.FEATURES_FIELD_NUMBER
