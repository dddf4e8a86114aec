"""The gRPC servicer of `treadle.v1.RegistryService`: decodes requests, calls the core, encodes responses."""

from collections.abc import AsyncIterator
from typing import Any

from treadle.core.errors import FailedPrecondition, InvalidInput, Violation
from treadle.core.model_ref import ModelRef
from treadle.registry import codec, deployments, history, manifest, models, policy
from treadle.registry.artifacts import ArtifactStore
from treadle.registry.checks import ViolationCollector
from treadle.registry.manifest import check_ref
from treadle.registry.store import UNKNOWN_ACTOR, RegistryStore
from treadle.registry.watch import Watches
from treadle.rpc import context as call_context
from treadle.v1 import registry_pb2 as pb
from treadle.v1 import registry_pb2_grpc

_MAX_KEY_CHARACTERS = 256
_MAX_ACTOR_CHARACTERS = 256


class RegistryServicer(registry_pb2_grpc.RegistryServiceServicer):
    """The methods are documented in `registry.proto`."""

    def __init__(self, store: RegistryStore, artifacts: ArtifactStore, watches: Watches) -> None:
        self._store = store
        self._artifacts = artifacts
        self._watches = watches

    async def CreateModel(self, request: pb.CreateModelRequest, context: Any) -> pb.Model:
        violations = ViolationCollector("the model cannot be created")
        violations.check_name("name", request.name)
        violations.check_text("description", request.description)
        violations.check_text("owner", request.owner)
        violations.raise_if_any()
        create = request.name, request.description, request.owner
        return codec.encode_model(await self._store.write(lambda tx: models.create(tx, *create), _actor()))

    async def GetModel(self, request: pb.GetModelRequest, context: Any) -> pb.Model:
        _check_name("name", request.name)
        return codec.encode_model(await self._store.read(lambda c: models.get(c, request.name)))

    async def ListModels(self, request: pb.ListModelsRequest, context: Any) -> pb.ListModelsResponse:
        page = await self._store.read(lambda c: models.list_models(c, request.page_size, request.page_token))
        return pb.ListModelsResponse(models=map(codec.encode_model, page.items), next_page_token=page.next_token)

    async def UploadArtifact(
        self, request: AsyncIterator[pb.UploadArtifactRequest], context: Any
    ) -> pb.UploadArtifactResponse:
        first = await anext(aiter(request), None)
        if first is None or first.WhichOneof("part") != "header":
            raise InvalidInput("the first message must be the header", [Violation("header", "must come first")])
        sha256, size_bytes = first.header.sha256, first.header.size_bytes
        existed = await self._artifacts.upload(sha256, size_bytes, _chunks(request))
        return pb.UploadArtifactResponse(sha256=sha256, size_bytes=size_bytes, existed=existed)

    async def DownloadArtifact(
        self, request: pb.DownloadArtifactRequest, context: Any
    ) -> AsyncIterator[pb.DownloadArtifactResponse]:
        async for chunk in self._artifacts.download(request.sha256):
            yield pb.DownloadArtifactResponse(chunk=chunk)

    async def CreateModelVersion(self, request: pb.CreateModelVersionRequest, context: Any) -> pb.ModelVersion:
        violations = ViolationCollector("the version cannot be registered")
        violations.check_name("model", request.model)
        violations.check_text("idempotency_key", request.idempotency_key, _MAX_KEY_CHARACTERS)
        violations.raise_if_any()
        model, key = request.model, request.idempotency_key
        seen = await self._store.read(lambda c: models.find_by_idempotency_key(c, model, key)) if key else None
        if seen is not None:
            return codec.encode_version(seen)
        wanted = codec.decode_manifest(request.manifest)
        manifest.check(wanted)
        await self._check_stored(wanted)
        made = await self._store.write(lambda tx: models.create_version(tx, model, wanted, key), _actor())
        return codec.encode_version(made)

    async def _check_stored(self, wanted: manifest.Manifest) -> None:
        """FailedPrecondition for files whose artifact is absent or has another size."""
        sizes = await self._artifacts.sizes([file.sha256 for file in wanted.files])
        absent = [file.path for file in wanted.files if sizes[file.sha256] is None]
        if absent:
            raise FailedPrecondition(f"upload these files' artifacts first: {', '.join(absent)}")
        for file in wanted.files:
            size = sizes[file.sha256]
            if size != file.size_bytes:
                raise FailedPrecondition(
                    f"file {file.path!r} is stated to have {file.size_bytes} bytes, its artifact has {size}"
                )

    async def GetModelVersion(self, request: pb.GetModelVersionRequest, context: Any) -> pb.ModelVersion:
        _check_name("model", request.model)
        match request.WhichOneof("which"):
            case "version":
                ref = ModelRef(request.model, request.version)
                return codec.encode_version(await self._store.read(lambda c: models.get_version(c, ref)))
            case "alias":
                _check_name("alias", request.alias)
                by_alias = request.model, request.alias
                return codec.encode_version(await self._store.read(lambda c: models.get_by_alias(c, *by_alias)))
        raise InvalidInput("say which version: its number or an alias", [Violation("which", "must be set")])

    async def ListModelVersions(
        self, request: pb.ListModelVersionsRequest, context: Any
    ) -> pb.ListModelVersionsResponse:
        _check_name("model", request.model)
        page = await self._store.read(
            lambda c: models.list_versions(c, request.model, request.page_size, request.page_token)
        )
        return pb.ListModelVersionsResponse(
            versions=map(codec.encode_version, page.items), next_page_token=page.next_token
        )

    async def SetAlias(self, request: pb.SetAliasRequest, context: Any) -> pb.Model:
        violations = ViolationCollector("the alias cannot be set")
        violations.check_name("model", request.model)
        violations.check_name("alias", request.alias)
        if request.alias.isdigit():
            violations.add("alias", "must not be a number, which would read like a version")
        if request.version < 0:
            violations.add("version", "must be 1 or more, or 0 to remove the alias")
        violations.raise_if_any()
        wanted = request.model, request.alias, request.version
        return codec.encode_model(await self._store.write(lambda tx: models.set_alias(tx, *wanted), _actor()))

    async def AddReport(self, request: pb.AddReportRequest, context: Any) -> pb.StoredReport:
        ref = _checked_ref(request.ref)
        codec.check_report(request.report)
        added = await self._store.write(lambda tx: models.add_report(tx, ref, request.report), _actor())
        return codec.encode_report(added)

    async def ListReports(self, request: pb.ListReportsRequest, context: Any) -> pb.ListReportsResponse:
        ref = _checked_ref(request.ref)
        page = await self._store.read(lambda c: models.list_reports(c, ref, request.page_size, request.page_token))
        return pb.ListReportsResponse(reports=map(codec.encode_report, page.items), next_page_token=page.next_token)

    async def ApplyDeployment(self, request: pb.ApplyDeploymentRequest, context: Any) -> pb.Deployment:
        violations = ViolationCollector("the deployment cannot be applied")
        violations.check_text("reason", request.reason)
        if request.expected_revision < deployments.MUST_NOT_EXIST:
            violations.add("expected_revision", "must be a revision, 0 for any, or -1 for none")
        violations.raise_if_any()
        wanted = codec.decode_policy(request.deployment)
        policy.check(wanted)
        expected, reason = request.expected_revision, request.reason
        applied = await self._store.write(lambda tx: deployments.apply(tx, wanted, expected, reason), _actor())
        return codec.encode_deployment(applied)

    async def GetDeployment(self, request: pb.GetDeploymentRequest, context: Any) -> pb.Deployment:
        violations = ViolationCollector("no such deployment can exist")
        violations.check_name("name", request.name)
        if request.revision < 0:
            violations.add("revision", "must be 1 or more, or 0 for the present one")
        violations.raise_if_any()
        found = await self._store.read(lambda c: deployments.get(c, request.name, request.revision))
        return codec.encode_deployment(found)

    async def ListDeployments(self, request: pb.ListDeploymentsRequest, context: Any) -> pb.ListDeploymentsResponse:
        found = await self._store.read(deployments.list_deployments)
        return pb.ListDeploymentsResponse(deployments=map(codec.encode_deployment, found))

    async def DeleteDeployment(self, request: pb.DeleteDeploymentRequest, context: Any) -> pb.DeleteDeploymentResponse:
        violations = ViolationCollector("the deployment cannot be deleted")
        violations.check_name("name", request.name)
        violations.check_text("reason", request.reason)
        violations.raise_if_any()
        await self._store.write(lambda tx: deployments.delete(tx, request.name, request.reason), _actor())
        return pb.DeleteDeploymentResponse()

    async def WatchDeployments(
        self, request: pb.WatchDeploymentsRequest, context: Any
    ) -> AsyncIterator[pb.DeploymentEvent]:
        async for event in self._watches.events(request.cursor):
            yield codec.encode_watch_event(event)

    async def ListHistory(self, request: pb.ListHistoryRequest, context: Any) -> pb.ListHistoryResponse:
        violations = ViolationCollector("the history cannot be listed")
        violations.check_text("subject_prefix", request.subject_prefix, 512)
        violations.raise_if_any()
        page = await self._store.read(
            lambda c: history.list_events(c, request.subject_prefix, request.page_size, request.page_token)
        )
        return pb.ListHistoryResponse(
            events=map(codec.encode_history_event, page.items), next_page_token=page.next_token
        )


async def _chunks(requests: AsyncIterator[pb.UploadArtifactRequest]) -> AsyncIterator[bytes]:
    async for request in requests:
        if request.WhichOneof("part") != "chunk":
            raise InvalidInput("after the header only chunks may come", [Violation("chunk", "must be set")])
        yield request.chunk


def _actor() -> str:
    """The caller's name for the history, from metadata."""
    actor = call_context.current().metadata.get(call_context.ACTOR) or UNKNOWN_ACTOR
    violations = ViolationCollector("the call cannot be recorded")
    violations.check_text(f"metadata {call_context.ACTOR}", actor, _MAX_ACTOR_CHARACTERS)
    violations.raise_if_any()
    return actor


def _check_name(field: str, value: str) -> None:
    violations = ViolationCollector("no such thing can exist")
    violations.check_name(field, value)
    violations.raise_if_any()


def _checked_ref(message: Any) -> ModelRef:
    ref = codec.decode_ref(message)
    violations = ViolationCollector("no such version can exist")
    check_ref(violations, "ref", ref)
    violations.raise_if_any()
    return ref
