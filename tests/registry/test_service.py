"""The service as a whole: on either database, over a restart, in a process of its own."""

import asyncio
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from treadle.core.errors import DataLoss, StorageFull
from treadle.core.settings import settings_from
from treadle.registry.service import RegistrySettings
from treadle.v1 import evaluation_pb2, types_pb2
from treadle.v1 import registry_pb2 as pb

if TYPE_CHECKING:
    from tests.registry.conftest import Open, Registry


async def _story(registry: "Registry") -> None:
    """A little of everything that is kept."""
    await registry.rpc.CreateModel(pb.CreateModelRequest(name="delay", description="Späť", owner="ops"))
    sha256 = (await registry.upload(b"weights")).sha256
    files = [pb.ModelFile(path="model.onnx", sha256=sha256, size_bytes=7)]
    for i in range(1, 5):
        await asyncio.gather(*(registry.make_version(key=f"job-{i}", files=files) for _ in range(2)))
    for alias, version in (("champion", 1), ("champion", 2), ("old", 1), ("old", 0)):
        await registry.rpc.SetAlias(pb.SetAliasRequest(model="delay", alias=alias, version=version))
    report = evaluation_pb2.EvaluationReport(rows=7).SerializeToString()
    ref = types_pb2.ModelRef(model="delay", version=1)
    await registry.rpc.AddReport(pb.AddReportRequest(ref=ref, report=report))
    await registry.apply(registry.deployment("a"), reason="begin")
    await registry.apply(registry.deployment("a", weights={1: 90, 2: 10}), expected=1)
    await registry.apply(registry.deployment("b"))
    await registry.rpc.DeleteDeployment(pb.DeleteDeploymentRequest(name="b"))


async def _everything(registry: "Registry") -> list[object]:
    """All that can be read, in pages of two where there are pages."""
    versions: list[object] = []
    token = ""
    while True:
        request = pb.ListModelVersionsRequest(model="delay", page_size=2, page_token=token)
        page = await registry.rpc.ListModelVersions(request)
        versions += page.versions
        token = page.next_page_token
        if not token:
            break
    events = registry.watch()
    ref = types_pb2.ModelRef(model="delay", version=1)
    return [
        *versions,
        await registry.rpc.ListModels(pb.ListModelsRequest()),
        await registry.rpc.GetModelVersion(pb.GetModelVersionRequest(model="delay", alias="champion")),
        await registry.rpc.ListReports(pb.ListReportsRequest(ref=ref)),
        await registry.rpc.ListDeployments(pb.ListDeploymentsRequest()),
        await registry.rpc.GetDeployment(pb.GetDeploymentRequest(name="a", revision=1)),
        await registry.rpc.GetDeployment(pb.GetDeploymentRequest(name="b", revision=1)),
        await registry.history(),
        await registry.history("delay"),
        [await anext(events) for _ in range(2)],
        await registry.download((await registry.upload(b"weights")).sha256),
    ]


async def test_a_restart_keeps_everything(open_registry: "Open", tmp_path: Path, database_url: str) -> None:
    settings = RegistrySettings(database_url=database_url)
    async with open_registry(tmp_path, settings) as registry:
        await _story(registry)
        before = await _everything(registry)
    versions = [item.ref.version for item in before if isinstance(item, pb.ModelVersion)]
    assert versions == [4, 3, 2, 1, 2]  # all, newest first, and the champion
    async with open_registry(tmp_path, settings) as registry:
        assert await _everything(registry) == before
        assert (await registry.make_version(key="job-3")).ref.version == 3
        assert (await registry.make_version()).ref.version == 5


async def test_artifacts_survive_a_lost_database_and_the_database_lost_artifacts(
    open_registry: "Open", tmp_path: Path
) -> None:
    async with open_registry(tmp_path) as registry:
        sha256 = (await registry.upload(b"weights")).sha256
        made = await registry.make_version(files=[pb.ModelFile(path="m", sha256=sha256, size_bytes=7)])
        (tmp_path / "artifacts/sha256" / sha256[:2] / sha256[2:]).unlink()
        got = await registry.rpc.GetModelVersion(pb.GetModelVersionRequest(model="delay", version=1))
        assert got == made
        assert not (await registry.upload(b"weights")).existed


async def test_a_registry_that_cannot_start_says_why(open_registry: "Open", tmp_path: Path) -> None:
    (tmp_path / "registry.db").write_bytes(b"this is no database " * 1000)
    with pytest.raises(DataLoss, match="backup"):
        async with open_registry(tmp_path):
            pass


def test_settings_come_from_the_environment() -> None:
    settings = settings_from(
        RegistrySettings,
        {"TREADLE_REGISTRY_ARTIFACTS": "/srv/artifacts", "TREADLE_REGISTRY_ARTIFACT_LIMIT_MIB": "5"},
        "REGISTRY",
    )
    assert settings == RegistrySettings(artifacts=Path("/srv/artifacts"), artifact_limit_mib=5)


@pytest.mark.privileged
async def test_a_registry_on_a_full_disk_says_so_loses_nothing_and_recovers(
    open_registry: "Open", tiny_disk: Path
) -> None:
    async with open_registry(tiny_disk, RegistrySettings(disk_reserve_mib=0)) as registry:
        await registry.make_version()
        ballast = _fill(tiny_disk)
        for call in (lambda: registry.upload(bytes(100_000)), lambda: registry.make_version(parameters=_BULKY)):
            with pytest.raises(StorageFull, match="make room") as caught:
                await call()
            assert not caught.value.retryable
        ballast.unlink()
        assert (await registry.make_version(parameters=_BULKY)).ref.version == 2
        await registry.upload(b"hello")


_BULKY = {"note": "x" * 100_000}


def _fill(folder: Path) -> Path:
    """A file that takes all the space that is left."""
    path = folder / "ballast"
    with path.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(4096))
    return path
