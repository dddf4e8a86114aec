"""Conversion between `treadle.v1` messages and the plain objects of the core."""

from collections.abc import Iterable

from google.protobuf.message import DecodeError

from treadle.core.errors import InvalidInput
from treadle.core.model_ref import ModelRef
from treadle.plugins.tensor_spec import TensorSpec
from treadle.registry import deployments, history, manifest, models, policy, watch
from treadle.v1 import evaluation_pb2, registry_pb2, types_pb2


def decode_ref(pb: types_pb2.ModelRef) -> ModelRef:
    """The reference of a message, not validated."""
    return ModelRef(pb.model, pb.version)


def decode_manifest(pb: registry_pb2.Manifest) -> manifest.Manifest:
    """The manifest of a message. InvalidInput if a sample column cannot be decoded."""
    return manifest.Manifest(
        backend=pb.backend,
        body=pb.SerializeToString(deterministic=True),
        feature_service=pb.feature_service,
        description=pb.description,
        inputs=tuple(map(TensorSpec.from_proto, pb.signature.inputs)),
        outputs=tuple(map(TensorSpec.from_proto, pb.signature.outputs)),
        sample_inputs=_decode_samples(pb.sample_inputs, "manifest.sample_inputs"),
        sample_outputs=_decode_samples(pb.sample_outputs, "manifest.sample_outputs"),
        files=tuple(manifest.ManifestFile(file.path, file.sha256, file.size_bytes) for file in pb.files),
        parent=decode_ref(pb.lineage.parent) if pb.lineage.HasField("parent") else None,
        compiled=_decode_compiled(pb.compiled) if pb.HasField("compiled") and not pb.compiled.reason else None,
    )


def _decode_compiled(pb: registry_pb2.Compiled) -> manifest.CompiledSpec:
    return manifest.CompiledSpec(pb.backend, pb.folder, pb.relative_tolerance, pb.absolute_tolerance)


def _decode_samples(pbs: Iterable[types_pb2.Column], where: str) -> tuple[manifest.SampleColumn, ...]:
    from treadle.rpc.codec import columns

    table = columns.decode_all(pbs, where)
    return tuple(manifest.SampleColumn(column.name, column.dtype, column.values.shape) for column in table.values())


def decode_policy(pb: registry_pb2.Deployment) -> policy.DeploymentPolicy:
    """The policy of a deployment message. InvalidInput if a constant answer cannot be decoded or has not one row."""
    body = registry_pb2.Deployment()
    body.CopyFrom(pb)
    # The registry sets these fields. A caller's values are ignored, so that a deployment can be read, changed, applied.
    body.ClearField("revision")
    body.ClearField("updated_micros")
    body.ClearField("updated_by")
    feature_policy = pb.feature_policy or registry_pb2.FEATURE_POLICY_SERVE
    known = feature_policy in registry_pb2.FeaturePolicy.values()
    return policy.DeploymentPolicy(
        name=pb.name,
        body=body.SerializeToString(deterministic=True),
        traffic=tuple(policy.TrafficShare(decode_ref(share.ref), share.weight) for share in pb.traffic),
        shadows=tuple(decode_ref(ref) for ref in pb.shadows),
        fallbacks=tuple(_decode_step(step, f"deployment.fallbacks[{i}]") for i, step in enumerate(pb.fallbacks)),
        sticky_entity=pb.sticky_entity,
        timeout_seconds=pb.timeout_seconds,
        feature_timeout_seconds=pb.feature_timeout_seconds,
        feature_policy=registry_pb2.FeaturePolicy.Name(feature_policy).removeprefix("FEATURE_POLICY_") if known else "",
        description=pb.description,
        restored_revision=pb.restored_revision,
    )


def _decode_step(pb: registry_pb2.FallbackStep, where: str) -> policy.FallbackStep:
    if pb.WhichOneof("answer") == "constant":
        from treadle.rpc.codec import columns

        constant = tuple(columns.decode_all(pb.constant.outputs, f"{where}.constant.outputs", rows=1))
        return policy.FallbackStep(pb.name, pb.timeout_seconds, constant=constant)
    ref = decode_ref(pb.ref) if pb.HasField("ref") else None
    return policy.FallbackStep(pb.name, pb.timeout_seconds, ref)


def check_report(report: bytes) -> None:
    """InvalidInput unless this is a serialized EvaluationReport."""
    try:
        whole = evaluation_pb2.EvaluationReport.FromString(report) if report else None
    except DecodeError:
        whole = None
    if whole is None:
        raise InvalidInput.at("report", "must be a serialized treadle.v1.EvaluationReport")


def encode_model(model: models.Model) -> registry_pb2.Model:
    """The message of a model."""
    return registry_pb2.Model(
        name=model.name,
        description=model.description,
        owner=model.owner,
        created_micros=model.created_micros,
        latest_version=model.latest_version,
        aliases=model.aliases,
    )


def encode_version(version: models.ModelVersion) -> registry_pb2.ModelVersion:
    """The message of a version with its complete manifest."""
    return registry_pb2.ModelVersion(
        ref=_encode_ref(version.ref),
        manifest=registry_pb2.Manifest.FromString(version.manifest),
        created_micros=version.created_micros,
        created_by=version.created_by,
        aliases=version.aliases,
    )


def encode_report(report: models.StoredReport) -> registry_pb2.StoredReport:
    """The message of a stored evaluation report, with its id."""
    return registry_pb2.StoredReport(
        report_id=f"report-{report.sequence}",
        ref=_encode_ref(report.ref),
        report=report.report,
        created_micros=report.created_micros,
    )


def encode_deployment(deployment: deployments.DeploymentRevision) -> registry_pb2.Deployment:
    """The message of a deployment revision, with the fields that the registry sets."""
    pb = registry_pb2.Deployment.FromString(deployment.body)
    pb.revision = deployment.revision
    pb.updated_micros = deployment.updated_micros
    pb.updated_by = deployment.updated_by
    return pb


def encode_watch_event(event: watch.Event) -> registry_pb2.DeploymentEvent:
    """The message of a watch event."""
    match event:
        case watch.Applied(cursor, deployment):
            return registry_pb2.DeploymentEvent(cursor=cursor, applied=encode_deployment(deployment))
        case watch.Deleted(cursor, name):
            return registry_pb2.DeploymentEvent(cursor=cursor, deleted=name)
        case watch.CaughtUp(cursor):
            return registry_pb2.DeploymentEvent(cursor=cursor, caught_up=True)


def encode_history_event(event: history.HistoryEvent) -> registry_pb2.HistoryEvent:
    """The message of a history event."""
    return registry_pb2.HistoryEvent(
        sequence=event.sequence,
        at_micros=event.at_micros,
        actor=event.actor,
        action=event.action,
        subject=event.subject,
        reason=event.reason,
        details_json=event.details_json,
    )


def _encode_ref(ref: ModelRef) -> types_pb2.ModelRef:
    return types_pb2.ModelRef(model=ref.model, version=ref.version)
