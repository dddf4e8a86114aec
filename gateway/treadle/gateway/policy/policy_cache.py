"""The contracts that a snapshot is made from, and the copy of them on disk.

The copy is one JSON file of the registry's and the feature service's own messages, so that people can read it. It is
replaced whole: a crash leaves the old one or the new one.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Self, TypeVar

from google.protobuf import json_format
from google.protobuf.message import Message

from treadle.core.errors import DataLoss, TreadleError
from treadle.core.model_ref import ModelRef
from treadle.gateway.policy.deployments import Deployment, FeatureNeeds, ServedVersion, Share, Snapshot, Step
from treadle.plugins.tensors import Signature
from treadle.rpc.codec.columns import decode_all, from_proto
from treadle.v1 import features_pb2, registry_pb2, types_pb2

_FORMAT = 1
MessageT = TypeVar("MessageT", bound=Message)


@dataclass
class PolicyCache:
    """What has been heard so far. Its snapshot is made anew when something in it changes."""

    cursor: str = ""
    """Where the watch of the registry goes on."""
    deployments: dict[str, registry_pb2.Deployment] = field(default_factory=dict)
    versions: dict[ModelRef, registry_pb2.ModelVersion] = field(default_factory=dict)
    """Without files, samples and whatever else is not needed to call them."""
    services: dict[str, features_pb2.FeatureServiceSpec] = field(default_factory=dict)
    views: dict[str, features_pb2.FeatureView] = field(default_factory=dict)

    def add_version(self, version: registry_pb2.ModelVersion) -> None:
        """Keeps what is needed to call it."""
        manifest = registry_pb2.Manifest(
            signature=version.manifest.signature,
            feature_service=version.manifest.feature_service,
        )
        self.versions[_ref(version.ref)] = registry_pb2.ModelVersion(ref=version.ref, manifest=manifest)

    def wanted(self) -> set[ModelRef]:
        """Versions that the deployments name and that are not known yet."""
        return self._named() - self.versions.keys()

    def wanted_services(self) -> list[str]:
        """Feature services that the versions name, known or not: their definitions may change."""
        named = {version.manifest.feature_service for version in self.versions.values()}
        return sorted(named - {""})

    def prune(self) -> None:
        """Forgets versions that no deployment names."""
        named = self._named()
        self.versions = {ref: version for ref, version in self.versions.items() if ref in named}

    def _named(self) -> set[ModelRef]:
        return {ref for pb in self.deployments.values() for ref in _refs(pb)}

    def snapshot(self, refused: Callable[[str, TreadleError], None]) -> Snapshot:
        """The picture that requests use. What cannot be read is left out and told to `refused(what, error)`."""
        described = {name: spec for name, spec in self.services.items() if self._is_described(spec)}
        needs = {name: _needs(spec, self.views) for name, spec in described.items()}
        versions = dict(_readable(self.versions.items(), _version, refused))
        deployments = _readable(self.deployments.items(), lambda pb: _deployment(pb, versions, needs), refused)
        return Snapshot(dict(deployments))

    def _is_described(self, spec: features_pb2.FeatureServiceSpec) -> bool:
        """Whether all its views are known; while one is not, nobody knows which of its columns are sensitive."""
        return all(part.view in self.views for part in spec.sets)

    def to_json(self) -> str:
        """The copy for the disk."""
        kept: dict[str, Any] = {"format": _FORMAT, "cursor": self.cursor}
        for name, messages in self._parts().items():
            kept[name] = [json_format.MessageToDict(message, preserving_proto_field_name=True) for message in messages]
        return json.dumps(kept, indent=1)

    def _parts(self) -> dict[str, Iterable[Message]]:
        return {
            "deployments": self.deployments.values(),
            "versions": self.versions.values(),
            "services": self.services.values(),
            "views": self.views.values(),
        }

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """Raises DataLoss when the text is not such a copy."""
        try:
            kept = json.loads(text)
            if kept["format"] != _FORMAT:
                raise DataLoss(f"its format is {kept['format']}, not {_FORMAT}")
            return cls(
                kept["cursor"],
                {pb.name: pb for pb in _parsed(registry_pb2.Deployment, kept["deployments"])},
                {_ref(pb.ref): pb for pb in _parsed(registry_pb2.ModelVersion, kept["versions"])},
                {pb.name: pb for pb in _parsed(features_pb2.FeatureServiceSpec, kept["services"])},
                {pb.name: pb for pb in _parsed(features_pb2.FeatureView, kept["views"])},
            )
        except (ValueError, KeyError, TypeError, json_format.ParseError) as error:
            raise DataLoss(f"it cannot be read: {error}") from error


def _parsed(cls: type[MessageT], items: list[Any]) -> list[MessageT]:
    return [json_format.ParseDict(item, cls(), ignore_unknown_fields=True) for item in items]


KeyT = TypeVar("KeyT", str, ModelRef)
PbT = TypeVar("PbT", bound=Message)
ReadT = TypeVar("ReadT")


def _readable(
    items: Iterable[tuple[KeyT, PbT]], read: Callable[[PbT], ReadT], refused: Callable[[str, TreadleError], None]
) -> Iterable[tuple[KeyT, ReadT]]:
    for key, pb in items:
        try:
            yield key, read(pb)
        except TreadleError as error:
            refused(str(key), error)


def _ref(pb: types_pb2.ModelRef) -> ModelRef:
    return ModelRef(pb.model, pb.version)


def _refs(pb: registry_pb2.Deployment) -> list[ModelRef]:
    steps = [step.ref for step in pb.fallbacks if step.HasField("ref")]
    return [_ref(ref) for ref in [*(share.ref for share in pb.traffic), *pb.shadows, *steps]]


def _version(pb: registry_pb2.ModelVersion) -> ServedVersion:
    signature = Signature.from_proto(pb.manifest.signature)
    return ServedVersion(_ref(pb.ref), signature, pb.manifest.feature_service)


def _deployment(
    pb: registry_pb2.Deployment, versions: Mapping[ModelRef, ServedVersion], needs: Mapping[str, FeatureNeeds]
) -> Deployment:
    return Deployment(
        name=pb.name,
        traffic=tuple(Share(_ref(share.ref), share.weight) for share in pb.traffic),
        shadows=tuple(map(_ref, pb.shadows)),
        fallbacks=tuple(map(_step, pb.fallbacks)),
        sticky_entity=pb.sticky_entity,
        timeout_seconds=pb.timeout_seconds,
        feature_timeout_seconds=pb.feature_timeout_seconds,
        strict=pb.feature_policy == registry_pb2.FEATURE_POLICY_STRICT,
        versions={ref: versions[ref] for ref in _refs(pb) if ref in versions},
        feature_services=needs,
    )


def _step(pb: registry_pb2.FallbackStep) -> Step:
    if pb.HasField("ref"):
        return Step(pb.name, _ref(pb.ref), (), pb.timeout_seconds)
    return Step(pb.name, None, tuple(decode_all(pb.constant.outputs, "constant", 1).values()), pb.timeout_seconds)


def _needs(spec: features_pb2.FeatureServiceSpec, views: Mapping[str, features_pb2.FeatureView]) -> FeatureNeeds:
    used = [views[part.view] for part in spec.sets]
    entities = {entity.name: from_proto(entity.dtype) for view in used for entity in view.entities}
    context = {field.name: from_proto(field.dtype) for field in spec.context}
    made = [field for transform in spec.transforms for field in transform.outputs]
    sensitive = {field.name for field in [*spec.context, *made] if field.sensitivity}
    for view in used:
        tagged = {field.name for field in view.fields if field.sensitivity}
        # An entity's own column may appear as a field, in any view: then its tag holds for the key as well.
        sensitive |= {f"{view.name}__{name}" for name in tagged} | (tagged & entities.keys())
    return FeatureNeeds(spec.name, entities, context, frozenset(sensitive))
