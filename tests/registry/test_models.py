"""Models, versions, aliases, reports, and the history of all that happens."""

import asyncio
import json
from typing import TYPE_CHECKING

import pytest

from treadle.core.errors import AlreadyExists, FailedPrecondition, InvalidInput, NotFound
from treadle.v1 import evaluation_pb2, types_pb2
from treadle.v1 import registry_pb2 as pb

if TYPE_CHECKING:
    from tests.registry.conftest import Registry

BAD_NAMES = ["", "A", "-a", ".a", "_a", "a/b", "a b", "é", "a" * 129, "a\n", "a\0", "../a", "a\\b"]
REPORT = evaluation_pb2.EvaluationReport(rows=7).SerializeToString()


async def test_a_model_is_created_once(registry: "Registry") -> None:
    request = pb.CreateModelRequest(name="flight-delay", description="Late or not", owner="ops")
    made = await registry.rpc.CreateModel(request)
    assert (made.name, made.description, made.owner, made.latest_version) == ("flight-delay", "Late or not", "ops", 0)
    assert made.created_micros > 0
    assert await registry.rpc.GetModel(pb.GetModelRequest(name="flight-delay")) == made
    with pytest.raises(AlreadyExists, match="flight-delay"):
        await registry.rpc.CreateModel(request)


@pytest.mark.parametrize("name", ["a", "0", "a" * 128, "a.b_c-d", "9lives"])
async def test_valid_names_are_accepted(registry: "Registry", name: str) -> None:
    assert (await registry.make_version(name)).ref.model == name


@pytest.mark.parametrize("name", BAD_NAMES)
async def test_invalid_names_are_refused_everywhere(registry: "Registry", name: str) -> None:
    rpc = registry.rpc
    ref = types_pb2.ModelRef(model=name, version=1)
    for call in (
        lambda: rpc.CreateModel(pb.CreateModelRequest(name=name)),
        lambda: rpc.GetModel(pb.GetModelRequest(name=name)),
        lambda: registry.make_version(name),
        lambda: rpc.GetModelVersion(pb.GetModelVersionRequest(model=name, version=1)),
        lambda: rpc.GetModelVersion(pb.GetModelVersionRequest(model="a", alias=name)),
        lambda: rpc.ListModelVersions(pb.ListModelVersionsRequest(model=name)),
        lambda: rpc.SetAlias(pb.SetAliasRequest(model=name, alias="champion", version=1)),
        lambda: rpc.SetAlias(pb.SetAliasRequest(model="a", alias=name, version=1)),
        lambda: rpc.AddReport(pb.AddReportRequest(ref=ref, report=REPORT)),
        lambda: rpc.ListReports(pb.ListReportsRequest(ref=ref)),
        lambda: registry.apply(registry.deployment(name)),
        lambda: rpc.GetDeployment(pb.GetDeploymentRequest(name=name)),
        lambda: rpc.DeleteDeployment(pb.DeleteDeploymentRequest(name=name)),
    ):
        with pytest.raises(InvalidInput):
            await call()
    assert await registry.history() == []


@pytest.mark.parametrize("text", ["a\0b", "a" * 10_001], ids=["NUL", "long"])
async def test_texts_that_cannot_be_stored_are_refused(registry: "Registry", text: str) -> None:
    await registry.make_version()
    for call in (
        lambda: registry.rpc.CreateModel(pb.CreateModelRequest(name="a", description=text)),
        lambda: registry.rpc.CreateModel(pb.CreateModelRequest(name="a", owner=text)),
        lambda: registry.make_version(key=text),
        lambda: registry.make_version(description=text),
        lambda: registry.make_version(feature_service=text),
        lambda: registry.apply(registry.deployment(), reason=text),
        lambda: registry.apply(registry.deployment(description=text)),
        lambda: registry.rpc.DeleteDeployment(pb.DeleteDeploymentRequest(name="a", reason=text)),
        lambda: registry.rpc.ListHistory(pb.ListHistoryRequest(subject_prefix=text)),
    ):
        with pytest.raises(InvalidInput):
            await call()


async def test_versions_are_numbered_without_gap_under_many_callers(registry: "Registry") -> None:
    made = await asyncio.gather(*(registry.make_version() for _ in range(40)))
    assert sorted(version.ref.version for version in made) == list(range(1, 41))
    assert (await registry.rpc.GetModel(pb.GetModelRequest(name="delay"))).latest_version == 40


async def test_a_version_is_stored_unchanged(registry: "Registry") -> None:
    parent = (await registry.make_version()).ref
    sha256 = (await registry.upload(b"weights")).sha256
    made = await registry.make_version(
        files=[pb.ModelFile(path="deep/model.onnx", sha256=sha256, size_bytes=7)],
        feature_service="flights_v1",
        parameters={"depth": "7"},
        metrics={"auc": 0.7, "loss": float("inf")},
        lineage=pb.Lineage(data_digest="d", code_revision="c", environment={"numpy": "2"}, parent=parent),
        description="Späť",
    )
    assert made.ref == types_pb2.ModelRef(model="delay", version=2)
    got = await registry.rpc.GetModelVersion(pb.GetModelVersionRequest(model="delay", version=2))
    assert got == made
    details = json.loads((await registry.history("delay/2"))[0].details_json)
    assert details["files"] == {"deep/model.onnx": sha256}
    assert details["parent"] == "delay/1"


async def test_the_same_key_means_the_same_version(registry: "Registry") -> None:
    made = await asyncio.gather(*(registry.make_version(key="job-7") for _ in range(8)))
    assert {version.ref.version for version in made} == {1}
    assert (await registry.make_version(key="job-8")).ref.version == 2
    assert (await registry.make_version("other", key="job-7")).ref.version == 1
    assert [e.subject for e in await registry.history("delay/")] == ["delay/2", "delay/1"]


async def test_files_must_be_uploaded_before_with_the_size_they_state(registry: "Registry") -> None:
    sha256 = (await registry.upload(b"weights")).sha256
    for file, wanted in (
        (pb.ModelFile(path="m", sha256="0" * 64, size_bytes=1), "upload these files' artifacts first: m"),
        (pb.ModelFile(path="m", sha256=sha256, size_bytes=8), "8 bytes, its artifact has 7"),
    ):
        with pytest.raises(FailedPrecondition, match=wanted):
            await registry.make_version(files=[file])
    with pytest.raises(NotFound):
        await registry.rpc.GetModel(pb.GetModelRequest(name="delay"))


async def test_a_parent_must_be_registered(registry: "Registry") -> None:
    parent = types_pb2.ModelRef(model="other", version=3)
    with pytest.raises(FailedPrecondition, match="other/3"):
        await registry.make_version(lineage=pb.Lineage(parent=parent))
    assert await registry.history() == []


async def test_what_does_not_exist_is_not_found(registry: "Registry") -> None:
    await registry.make_version()
    for request in (
        pb.GetModelVersionRequest(model="nope", version=1),
        pb.GetModelVersionRequest(model="delay", version=2),
        pb.GetModelVersionRequest(model="delay", version=0),
        pb.GetModelVersionRequest(model="delay", version=-1),
        pb.GetModelVersionRequest(model="delay", alias="champion"),
    ):
        with pytest.raises(NotFound):
            await registry.rpc.GetModelVersion(request)
    with pytest.raises(NotFound):
        await registry.rpc.GetModel(pb.GetModelRequest(name="nope"))
    with pytest.raises(NotFound):
        await registry.rpc.ListModelVersions(pb.ListModelVersionsRequest(model="nope"))
    with pytest.raises(InvalidInput, match="number or an alias"):
        await registry.rpc.GetModelVersion(pb.GetModelVersionRequest(model="delay"))


async def _set_alias(registry: "Registry", version: int, alias: str = "champion") -> dict[str, int]:
    return dict((await registry.rpc.SetAlias(pb.SetAliasRequest(model="delay", alias=alias, version=version))).aliases)


async def test_an_alias_is_set_moved_and_removed(registry: "Registry") -> None:
    for _ in range(3):
        await registry.make_version()
    assert await _set_alias(registry, 1) == {"champion": 1}
    assert await _set_alias(registry, 3, "challenger") == {"champion": 1, "challenger": 3}
    assert await _set_alias(registry, 3) == {"champion": 3, "challenger": 3}
    got = await registry.rpc.GetModelVersion(pb.GetModelVersionRequest(model="delay", alias="champion"))
    assert got.ref.version == 3
    assert list(got.aliases) == ["challenger", "champion"]
    assert await _set_alias(registry, 3) == {"champion": 3, "challenger": 3}  # nothing new: no event
    assert await _set_alias(registry, 0) == {"challenger": 3}
    events = [json.loads(e.details_json) for e in await registry.history("delay@champion")]
    assert events == [
        {"version": None, "previous_version": 3},
        {"version": 3, "previous_version": 1},
        {"version": 1, "previous_version": None},
    ]
    for version in (0, 4):
        with pytest.raises(NotFound):
            await _set_alias(registry, version)
    for alias, version in (("7", 1), ("champion", -1)):
        with pytest.raises(InvalidInput):
            await _set_alias(registry, version, alias)


async def test_reports_are_added_newest_first(registry: "Registry") -> None:
    ref = (await registry.make_version()).ref
    added = [await registry.rpc.AddReport(pb.AddReportRequest(ref=ref, report=REPORT)) for _ in range(3)]
    assert len({report.report_id for report in added}) == 3
    page = await registry.rpc.ListReports(pb.ListReportsRequest(ref=ref, page_size=2))
    assert list(page.reports) == [added[2], added[1]]
    rest = await registry.rpc.ListReports(pb.ListReportsRequest(ref=ref, page_token=page.next_page_token))
    assert list(rest.reports) == [added[0]]
    assert rest.next_page_token == ""
    for report in (b"", b"\xff\xff"):
        with pytest.raises(InvalidInput, match="EvaluationReport"):
            await registry.rpc.AddReport(pb.AddReportRequest(ref=ref, report=report))
    ref.version = 2
    with pytest.raises(NotFound):
        await registry.rpc.AddReport(pb.AddReportRequest(ref=ref, report=REPORT))
    with pytest.raises(NotFound):
        await registry.rpc.ListReports(pb.ListReportsRequest(ref=ref))


async def test_pages_contain_every_item_once(registry: "Registry") -> None:
    names = [f"m{i}" for i in range(5)]
    for name in names:
        await registry.make_version(name)
        await registry.make_version("delay")
    found: list[str] = []
    token = ""
    while True:
        models = await registry.rpc.ListModels(pb.ListModelsRequest(page_size=2, page_token=token))
        found += [model.name for model in models.models]
        token = models.next_page_token
        if not token:
            break
    assert found == ["delay", *names]
    numbers: list[int] = []
    while True:
        request = pb.ListModelVersionsRequest(model="delay", page_size=2, page_token=token)
        versions = await registry.rpc.ListModelVersions(request)
        numbers += [version.ref.version for version in versions.versions]
        token = versions.next_page_token
        if not token:
            break
    assert numbers == [5, 4, 3, 2, 1]


async def test_a_page_of_large_manifests_ends_early(registry: "Registry") -> None:
    for _ in range(3):
        await registry.make_version(parameters={"note": "x" * 1_500_000})
    page = await registry.rpc.ListModelVersions(pb.ListModelVersionsRequest(model="delay"))
    assert [version.ref.version for version in page.versions] == [3]
    assert page.next_page_token


async def test_pages_of_long_texts_fit_into_a_message_and_contain_every_item_once(registry: "Registry") -> None:
    text = "🛫" * 10_000
    names = [f"m{i:02}" for i in range(60)]
    for name in names:  # sixty of them are more than the 4 MiB that gRPC takes by default
        await registry.rpc.CreateModel(pb.CreateModelRequest(name=name, description=text, owner=text))
    models: list[str] = []
    subjects: list[str] = []
    token = ""
    while token or not models:
        page = await registry.rpc.ListModels(pb.ListModelsRequest(page_size=1000, page_token=token))
        assert page.ByteSize() < 4 << 20
        models += [model.name for model in page.models]
        token = page.next_page_token
    while token or not subjects:
        events_page = await registry.rpc.ListHistory(pb.ListHistoryRequest(page_size=1000, page_token=token))
        assert events_page.ByteSize() < 4 << 20
        subjects += [event.subject for event in events_page.events]
        token = events_page.next_page_token
    assert models == names
    assert subjects == names[::-1]


async def test_page_tokens_belong_to_their_list(registry: "Registry") -> None:
    for model in ("a", "a", "b", "b"):
        await registry.make_version(model)
    token = (await registry.rpc.ListModelVersions(pb.ListModelVersionsRequest(model="a", page_size=1))).next_page_token
    for wrong in (token, "nonsense", "é", "W10", "bnVsbA", token[:-3]):
        with pytest.raises(InvalidInput, match="page_token"):
            await registry.rpc.ListModelVersions(pb.ListModelVersionsRequest(model="b", page_token=wrong))
    for size in (-1, 1001):
        with pytest.raises(InvalidInput, match="page_size"):
            await registry.rpc.ListModels(pb.ListModelsRequest(page_size=size))


async def test_the_history_lists_actors_and_actions_newest_first(registry: "Registry") -> None:
    await registry.rpc.CreateModel(pb.CreateModelRequest(name="delay"), metadata=(("treadle-actor", "ada"),))
    await registry.make_version()
    await _set_alias(registry, 1)
    ref = types_pb2.ModelRef(model="delay", version=1)
    await registry.rpc.AddReport(pb.AddReportRequest(ref=ref, report=REPORT))
    await registry.apply(registry.deployment(), reason="first light")
    await registry.rpc.DeleteDeployment(pb.DeleteDeploymentRequest(name="flights", reason="too hot"))
    events = await registry.history()
    assert [(e.sequence, e.action, e.subject, e.reason, e.actor) for e in events] == [
        (6, "deployment.delete", "deployment:flights", "too hot", "unknown"),
        (5, "deployment.apply", "deployment:flights", "first light", "unknown"),
        (4, "report.add", "delay/1", "", "unknown"),
        (3, "alias.set", "delay@champion", "", "unknown"),
        (2, "version.create", "delay/1", "", "unknown"),
        (1, "model.create", "delay", "", "ada"),
    ]
    assert [e.at_micros for e in events] == sorted((e.at_micros for e in events), reverse=True)
    assert [e.sequence for e in await registry.history("delay")] == [4, 3, 2, 1]
    assert [e.sequence for e in await registry.history("DELAY")] == []
    assert [e.sequence for e in await registry.history("del%y")] == []
    first = await registry.rpc.ListHistory(pb.ListHistoryRequest(subject_prefix="delay", page_size=3))
    second = await registry.rpc.ListHistory(
        pb.ListHistoryRequest(subject_prefix="delay", page_token=first.next_page_token)
    )
    assert [e.sequence for e in (*first.events, *second.events)] == [4, 3, 2, 1]
    with pytest.raises(InvalidInput, match="page_token"):
        await registry.rpc.ListHistory(pb.ListHistoryRequest(page_token=first.next_page_token))
