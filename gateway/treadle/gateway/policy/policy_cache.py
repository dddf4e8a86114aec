"""What the gateway has been told about deployments: the contracts that its snapshots are made from.

Versions and feature services are kept on disk beside the deployments that name them (`DeploymentFollower`), as the
registry's and the feature service's own messages in JSON, so that people can read them.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from google.protobuf import json_format
from google.protobuf.message import Message

from treadle.core.errors import TreadleError
from treadle.core.model_ref import ModelRef
from treadle.gateway.policy.deployments import (
    FeatureNeeds,
    PolicySnapshot,
    ServedDeployment,
    ServedShare,
    ServedStep,
    ServedVersion,
)
from treadle.plugins.tensors import Signature
from treadle.rpc.codec.columns import decode_all, from_proto
from treadle.v1 import features_pb2, registry_pb2, types_pb2

MessageT = TypeVar("MessageT", bound=Message)


Deployments = Mapping[str, registry_pb2.Deployment]
"""Deployments by name."""


@dataclass
class PolicyCache:
    """Model versions and feature services that deployments name."""

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

    def missing_versions(self, deployments: Deployments) -> set[ModelRef]:
        """Versions that the deployments name and that are not known yet."""
        return _named(deployments) - self.versions.keys()

    def missing_services(self) -> set[str]:
        """Feature services that versions name and that are not known yet."""
        return set(self.named_services()) - self.services.keys()

    def named_services(self) -> list[str]:
        """Feature services that versions name, known or not: their definitions may change."""
        named = {version.manifest.feature_service for version in self.versions.values()}
        return sorted(named - {""})

    def prune(self, deployments: Deployments) -> None:
        """Forgets versions that no deployment names."""
        named = _named(deployments)
        self.versions = {ref: version for ref, version in self.versions.items() if ref in named}

    def snapshot(self, deployments: Deployments, refused: Callable[[str, TreadleError], None]) -> PolicySnapshot:
        """The snapshot that requests use. A contract that cannot be read is left out: `refused(which, error)`."""
        described = {name: spec for name, spec in self.services.items() if self._is_described(spec)}
        needs = {name: _needs(spec, self.views) for name, spec in described.items()}
        versions = dict(_readable(self.versions.items(), _version, refused))
        return PolicySnapshot(
            dict(_readable(deployments.items(), lambda pb: _deployment(pb, versions, needs), refused))
        )

    def _is_described(self, spec: features_pb2.FeatureServiceSpec) -> bool:
        """Whether all its views are known; while one is not, nobody knows which of its columns are sensitive."""
        return all(part.view in self.views for part in spec.sets)

    def to_dict(self) -> dict[str, Any]:
        """It as JSON, for the copy on disk."""
        parts: dict[str, Iterable[Message]] = {
            "versions": self.versions.values(),
            "services": self.services.values(),
            "views": self.views.values(),
        }
        return {
            name: [json_format.MessageToDict(message, preserving_proto_field_name=True) for message in messages]
            for name, messages in parts.items()
        }

    def load(self, kept: Mapping[str, Any]) -> None:
        """Replaces everything by what `to_dict` gave. KeyError, TypeError or ParseError where it cannot be read."""
        versions = {_ref(pb.ref): pb for pb in _parsed(registry_pb2.ModelVersion, kept["versions"])}
        services = {pb.name: pb for pb in _parsed(features_pb2.FeatureServiceSpec, kept["services"])}
        views = {pb.name: pb for pb in _parsed(features_pb2.FeatureView, kept["views"])}
        self.versions, self.services, self.views = versions, services, views


def _named(deployments: Deployments) -> set[ModelRef]:
    return {ref for pb in deployments.values() for ref in _refs(pb)}


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
) -> ServedDeployment:
    return ServedDeployment(
        name=pb.name,
        traffic=tuple(ServedShare(_ref(share.ref), share.weight) for share in pb.traffic),
        shadows=tuple(map(_ref, pb.shadows)),
        fallbacks=tuple(map(_step, pb.fallbacks)),
        sticky_entity=pb.sticky_entity,
        timeout_seconds=pb.timeout_seconds,
        feature_timeout_seconds=pb.feature_timeout_seconds,
        strict=pb.feature_policy == registry_pb2.FEATURE_POLICY_STRICT,
        versions={ref: versions[ref] for ref in _refs(pb) if ref in versions},
        feature_services=needs,
    )


def _step(pb: registry_pb2.FallbackStep) -> ServedStep:
    if pb.HasField("ref"):
        return ServedStep(pb.name, _ref(pb.ref), (), pb.timeout_seconds)
    return ServedStep(pb.name, None, tuple(decode_all(pb.constant.outputs, "constant", 1).values()), pb.timeout_seconds)


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
