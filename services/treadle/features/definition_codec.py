"""Conversion between definitions and `treadle.v1` messages. Decoding validates: InvalidInput names the object."""

from collections.abc import Iterable
from datetime import timedelta

from treadle.core.errors import InvalidInput
from treadle.features.definitions import (
    Definitions,
    Entity,
    FeatureService,
    FeatureSet,
    FeatureView,
    Field,
    Source,
    Transform,
)
from treadle.features.names import check_name
from treadle.rpc.codec import columns
from treadle.v1 import features_pb2 as pb

_MAX_SECONDS = timedelta.max.total_seconds()


def view_to_proto(view: FeatureView) -> pb.FeatureView:
    """The protobuf message of a view."""
    source = None if view.source is None else pb.FeatureSource(**vars(view.source))
    return pb.FeatureView(
        name=view.name,
        entities=[
            pb.Entity(name=e.name, dtype=columns.to_proto(e.dtype), description=e.description) for e in view.entities
        ],
        source=source,
        fields=_fields_to_proto(view.fields),
        freshness_seconds=0.0 if view.freshness is None else view.freshness.total_seconds(),
        owner=view.owner,
        description=view.description,
    )


def view_from_proto(message: pb.FeatureView) -> FeatureView:
    """The view of a message. InvalidInput names the invalid field."""
    check_name(message.name, "view")
    seconds = message.freshness_seconds
    if not 0 <= seconds < _MAX_SECONDS:
        raise InvalidInput(f"view {message.name!r}: freshness_seconds must be 0 (never stale) or positive")
    source = Source(message.source.path, message.source.timestamp_column) if message.HasField("source") else None
    return FeatureView(
        message.name,
        [Entity(each.name, _dtype(each.dtype, "entity", each.name), each.description) for each in message.entities],
        source,
        _fields_from_proto(message.fields),
        timedelta(seconds=seconds) if seconds else None,
        message.owner,
        message.description,
    )


def service_to_proto(service: FeatureService) -> pb.FeatureServiceSpec:
    """The protobuf message of a feature service."""
    return pb.FeatureServiceSpec(
        name=service.name,
        sets=[pb.FeatureSet(view=each.view, fields=each.fields) for each in service.feature_sets],
        context=_fields_to_proto(service.context),
        transforms=[
            pb.Transform(
                name=each.name,
                function=each.function,
                inputs=each.inputs,
                outputs=_fields_to_proto(each.outputs),
                source_digest=each.source_digest,
            )
            for each in service.named_transforms
        ],
        outputs=service.outputs,
        owner=service.owner,
        description=service.description,
    )


def service_from_proto(message: pb.FeatureServiceSpec) -> FeatureService:
    """The feature service of a message; its transforms hold no functions yet. InvalidInput names the invalid field."""
    return FeatureService(
        message.name,
        [FeatureSet(each.view, tuple(each.fields)) for each in message.sets],
        _fields_from_proto(message.context),
        [
            Transform(
                each.name, each.function, tuple(each.inputs), _fields_from_proto(each.outputs), each.source_digest
            )
            for each in message.transforms
        ],
        tuple(message.outputs),
        message.owner,
        message.description,
    )


def to_apply_request(definitions: Definitions, *, dry_run: bool = False) -> pb.ApplyFeaturesRequest:
    """The request that applies definitions."""
    return pb.ApplyFeaturesRequest(
        views=[view_to_proto(each) for each in definitions.views],
        services=[service_to_proto(each) for each in definitions.services],
        dry_run=dry_run,
    )


def from_apply_request(message: pb.ApplyFeaturesRequest) -> Definitions:
    """The definitions of a request. InvalidInput names the invalid object."""
    return Definitions(
        tuple(view_from_proto(each) for each in message.views),
        tuple(service_from_proto(each) for each in message.services),
    )


def _fields_to_proto(fields: Iterable[Field]) -> list[pb.FeatureField]:
    return [
        pb.FeatureField(
            name=each.name,
            dtype=columns.to_proto(each.dtype),
            unit=each.unit,
            sensitivity=each.sensitivity,
            description=each.description,
        )
        for each in fields
    ]


def _fields_from_proto(messages: Iterable[pb.FeatureField]) -> list[Field]:
    return [
        Field(each.name, _dtype(each.dtype, "field", each.name), each.unit, each.sensitivity, each.description)
        for each in messages
    ]


def _dtype(number: int, what: str, name: str) -> str:
    try:
        return columns.from_proto(number)
    except InvalidInput as error:
        raise InvalidInput(f"{what} {name!r:.80}: {error.message}") from None
