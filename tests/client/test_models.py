"""Models and deployments, against a real registry."""

import asyncio
import shutil
from pathlib import Path

import pytest

from treadle.client import AsyncClient, Fallback, ModelListing, UploadProgress
from treadle.client.inference import _not_ready
from treadle.client.uploads import CHUNK_BYTES
from treadle.core.errors import Conflict, FailedPrecondition, InvalidInput, NotFound
from treadle.rpc.codec.columns import decode
from treadle.v1 import evaluation_pb2, registry_pb2, registry_pb2_grpc, types_pb2


async def test_push_registers_a_version_and_reports_progress(models: AsyncClient, package: Path) -> None:
    seen: list[UploadProgress] = []
    made = await models.push_model("delay", package, progress=seen.append)
    assert (made.ref.model, made.ref.version) == ("delay", 1)
    assert made.created_by == "ada"
    assert seen[-1].bytes_done == seen[-1].bytes_total == sum(file.size_bytes for file in made.manifest.files)
    assert [each.bytes_done for each in seen] == sorted(each.bytes_done for each in seen)


async def test_pushing_again_makes_no_second_version(models: AsyncClient, package: Path) -> None:
    first = await models.push_model("delay", package)
    again = await models.push_model("delay", package)
    other = await models.push_model("delay", package, idempotency_key="on purpose")
    assert (first.ref.version, again.ref.version, other.ref.version) == (1, 1, 2)


async def test_bytes_that_exist_are_not_sent_again(models: AsyncClient, package: Path, tmp_path: Path) -> None:
    big = Path(shutil.copytree(package, tmp_path / "big"))
    (big / "weights.bin").write_bytes(bytes(16 * CHUNK_BYTES))
    await models.push_model("delay", big)
    sent: list[UploadProgress] = []
    await models.push_model("delay", big, idempotency_key="again", progress=sent.append)
    steps = [each for each in sent if each.file == "weights.bin"]
    assert len(steps) < 16  # what was on its way when the registry said that it has them
    assert steps[-1].bytes_done <= steps[-1].bytes_total


async def test_versions_aliases_and_history(models: AsyncClient, package: Path) -> None:
    await models.push_model("delay", package)
    await models.push_model("delay", package, idempotency_key="two")
    await models.set_alias("delay", "champion", 1)
    assert [each.ref.version for each in await models.versions("delay")] == [2, 1]
    assert (await models.get_version("delay@champion")).ref.version == 1
    assert [each.name for each in await models.models()] == ["delay"]
    assert dict((await models.get_model("delay")).aliases) == {"champion": 1}
    events = await models.history("delay", limit=2)
    assert [each.action for each in events] == ["alias.set", "version.create"]
    assert {each.actor for each in events} == {"ada"}


async def test_reports_come_back_however_many_pages_they_take(models: AsyncClient, package: Path) -> None:
    ref = (await models.push_model("delay", package)).ref
    await models.set_alias("delay", "champion", 1)
    for number in range(5):
        large = evaluation_pb2.EvaluationReport(seed=number, dataset_digest="x" * 1_000_000)
        request = registry_pb2.AddReportRequest(ref=ref, report=large.SerializeToString())
        await registry_pb2_grpc.RegistryServiceStub(models.channel).AddReport(request)
    for reference in ("delay/1", "delay@champion"):
        assert [report.seed for report in await models.reports(reference)] == [4, 3, 2, 1, 0]
    with pytest.raises(NotFound):
        await models.reports("delay/2")


async def test_artifacts_are_downloaded_unchanged(models: AsyncClient, package: Path, tmp_path: Path) -> None:
    made = await models.push_model("delay", package)
    file = made.manifest.files[0]
    size = await models.download_artifact(file.sha256, tmp_path / "copy")
    assert size == file.size_bytes
    assert (tmp_path / "copy").read_bytes() == (package / file.path).read_bytes()
    with pytest.raises(NotFound):
        await models.download_artifact("0" * 64, tmp_path / "none")
    assert not await asyncio.to_thread(lambda: list(tmp_path.glob("*none*")))


@pytest.mark.parametrize("text", ["delay", "delay/0", "delay/x", "DELAY/1", "delay@", "/1", "delay/1/2", ""])
async def test_invalid_references_are_refused_by_the_client(models: AsyncClient, text: str) -> None:
    with pytest.raises(InvalidInput, match="model/3 or model@alias"):
        await models.get_version(text)


async def test_unknown_names(models: AsyncClient, tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        await models.get_version("nobody/1")
    with pytest.raises(NotFound):
        await models.get_deployment("nobody")
    with pytest.raises(NotFound, match=r"treadle-model\.json"):
        await models.push_model("delay", tmp_path)


async def test_deploy_promote_rollback(models: AsyncClient, package: Path) -> None:
    for key in ("one", "two"):
        await models.push_model("delay", package, idempotency_key=key)
    await models.set_alias("delay", "champion", 2)
    made = await models.deploy(
        "flights",
        {"delay/1": 90, "delay@champion": 10},
        fallbacks=[Fallback("older", version="delay/1"), Fallback("guess", constant={"probability": [[0.8, 0.2]]})],
        sticky_entity="tail_number",
        reason="first",
    )
    assert [(share.ref.version, share.weight) for share in made.traffic] == [(1, 90), (2, 10)]
    constant = decode(made.fallbacks[1].constant.outputs[0])
    assert constant.values.tolist() == [[0.8, 0.2]]

    promoted = await models.promote("flights", "delay@champion")
    assert [(share.ref.version, share.weight) for share in promoted.traffic] == [(2, 100)]
    assert len(promoted.fallbacks) == 2
    assert promoted.sticky_entity == "tail_number"

    back = await models.rollback("flights")
    assert back.revision == 3
    assert back.traffic == made.traffic
    assert (await models.history("deployment:flights"))[0].reason == "rollback to revision 1"
    assert back.restored_revision == 1
    assert (await models.rollback("flights", to_revision=2)).traffic == promoted.traffic


async def test_rollback_after_rollback_walks_further_back(models: AsyncClient, package: Path) -> None:
    await models.push_model("delay", package)
    for text in ("one", "two", "three"):
        await models.deploy("flights", {"delay/1": 100}, description=text)
    walked = [await models.rollback("flights", reason="late") for _ in range(2)]
    assert [(each.revision, each.restored_revision, each.description) for each in walked] == [
        (4, 2, "two"),
        (5, 1, "one"),
    ]
    assert (await models.history("deployment:flights"))[0].reason == "rollback to revision 1: late"
    with pytest.raises(FailedPrecondition, match="revision 5, which is 1 again: there is no earlier"):
        await models.rollback("flights")
    promoted = await models.promote("flights", "delay/1")
    assert promoted.restored_revision == 0
    back = await models.rollback("flights")
    assert (back.restored_revision, back.description) == (1, "one")  # revision 5 is 1 again, so 2 is not "before" it
    assert (await models.rollback("flights", to_revision=3)).description == "three"


async def test_rollback_needs_an_earlier_revision(models: AsyncClient, package: Path) -> None:
    await models.push_model("delay", package)
    await models.deploy("flights", {"delay/1": 100})
    with pytest.raises(FailedPrecondition, match="no earlier"):
        await models.rollback("flights")
    with pytest.raises(FailedPrecondition, match="no earlier"):
        await models.rollback("flights", to_revision=5)


async def test_two_writers_one_wins(models: AsyncClient, package: Path) -> None:
    await models.push_model("delay", package)
    await models.deploy("flights", {"delay/1": 100})
    await models.deploy("flights", {"delay/1": 100}, description="other", expected_revision=1)
    with pytest.raises(Conflict):
        await models.deploy("flights", {"delay/1": 100}, description="mine", expected_revision=1)


async def test_deleted_deployments_are_gone(models: AsyncClient, package: Path) -> None:
    await models.push_model("delay", package)
    await models.deploy("flights", {"delay/1": 100})
    await models.delete_deployment("flights", "no longer")
    assert await models.deployments() == []


def test_waiting_ends_with_the_reason_when_a_version_cannot_load() -> None:
    wanted = [types_pb2.ModelRef(model="delay", version=1), types_pb2.ModelRef(model="delay", version=2)]
    ready, loading = ModelListing("delay", "1", "READY", ""), ModelListing("delay", "2", "LOADING", "")
    assert _not_ready(wanted, [ready, loading]) == ["delay/2"]
    assert _not_ready(wanted, [ready]) == ["delay/2"]
    assert _not_ready(wanted, [ready, loading._replace(state="READY")]) == []
    with pytest.raises(FailedPrecondition, match="delay/2 can't be loaded: wrong digest"):
        _not_ready(wanted, [ready, loading._replace(state="UNAVAILABLE", reason="wrong digest")])
