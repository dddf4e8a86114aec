"""Deployments: validation, revisions, optimistic concurrency."""

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest

from treadle.core.errors import AlreadyExists, Conflict, FailedPrecondition, InvalidInput, NotFound
from treadle.v1 import registry_pb2 as pb
from treadle.v1 import types_pb2

if TYPE_CHECKING:
    from tests.registry.conftest import Registry


def ref(version: int = 1, model: str = "delay") -> types_pb2.ModelRef:
    return types_pb2.ModelRef(model=model, version=version)


def share(weight: float, version: int = 1, model: str = "delay") -> pb.TrafficShare:
    return pb.TrafficShare(ref=ref(version, model), weight=weight)


def constant(*values: float, name: str = "y") -> pb.DefaultAnswer:
    return pb.DefaultAnswer(outputs=[types_pb2.Column(name=name, doubles=types_pb2.Doubles(values=values))])


def step(name: str = "older", **changes: Any) -> pb.FallbackStep:
    return pb.FallbackStep(**({"name": name} | ({"ref": ref()} if "constant" not in changes else {}) | changes))


NAN, INF = float("nan"), float("inf")
BROKEN: list[tuple[dict[str, Any], str]] = [
    ({"name": "Flights"}, "deployment.name"),
    ({"traffic": []}, "deployment.traffic"),
    ({"traffic": [share(99)]}, "deployment.traffic"),
    ({"traffic": [share(50), share(49.9, 2)]}, "deployment.traffic"),
    ({"traffic": [share(50), share(50)]}, "deployment.traffic"),
    ({"traffic": [share(110), share(-10, 2)]}, "deployment.traffic[1].weight"),
    ({"traffic": [share(NAN)]}, "deployment.traffic[0].weight"),
    ({"traffic": [share(INF)]}, "deployment.traffic[0].weight"),
    ({"traffic": [share(100, 0)]}, "deployment.traffic[0].ref.version"),
    ({"traffic": [share(100, 1, "")]}, "deployment.traffic[0].ref.model"),
    ({"traffic": [pb.TrafficShare(weight=100)]}, "deployment.traffic[0].ref.model"),
    ({"shadows": [ref(2), ref(2)]}, "deployment.shadows"),
    ({"shadows": [ref(1)]}, "deployment.shadows[0]"),
    ({"shadows": [ref(-1)]}, "deployment.shadows[0].version"),
    ({"fallbacks": [step("a"), step("a")]}, "deployment.fallbacks"),
    ({"fallbacks": [step("")]}, "deployment.fallbacks[0].name"),
    ({"fallbacks": [pb.FallbackStep(name="a")]}, "deployment.fallbacks[0]"),
    ({"fallbacks": [step(constant=pb.DefaultAnswer())]}, "deployment.fallbacks[0]"),
    ({"fallbacks": [step(constant=constant(1, 2))]}, "deployment.fallbacks[0].constant.outputs[y]"),
    ({"fallbacks": [step(constant=constant(1, name=""))]}, "deployment.fallbacks[0].constant.outputs"),
    ({"fallbacks": [step(timeout_seconds=-1)]}, "deployment.fallbacks[0].timeout_seconds"),
    ({"timeout_seconds": -0.1}, "deployment.timeout_seconds"),
    ({"timeout_seconds": NAN}, "deployment.timeout_seconds"),
    ({"timeout_seconds": INF}, "deployment.timeout_seconds"),
    ({"feature_timeout_seconds": -1}, "deployment.feature_timeout_seconds"),
    ({"timeout_seconds": 1, "feature_timeout_seconds": 2}, "deployment.feature_timeout_seconds"),
    ({"feature_policy": 9}, "deployment.feature_policy"),
    ({"sticky_entity": "a" * 257}, "deployment.sticky_entity"),
]


@pytest.mark.parametrize(("changes", "field"), BROKEN)
async def test_an_invalid_policy_is_refused_with_the_field(
    registry: "Registry", changes: dict[str, Any], field: str
) -> None:
    fields: dict[str, Any] = {"name": "flights", "traffic": [share(100)]}
    with pytest.raises(InvalidInput) as caught:
        await registry.apply(pb.Deployment(**(fields | changes)))
    assert field in [violation.field for violation in caught.value.violations]
    assert await registry.history() == []


async def test_a_complete_policy_is_stored(registry: "Registry") -> None:
    for _ in range(4):
        await registry.make_version()
    wanted = pb.Deployment(
        name="flights",
        traffic=[share(100 / 3, 1), share(100 / 3, 2), share(100 / 3, 3)],
        shadows=[ref(4)],
        fallbacks=[step("older", timeout_seconds=0.5), step("on-time", constant=constant(0.2))],
        sticky_entity="tail_number",
        timeout_seconds=2,
        feature_timeout_seconds=1,
        feature_policy=pb.FEATURE_POLICY_STRICT,
        description="Who is late",
    )
    applied = await registry.apply(wanted)
    assert (applied.revision, applied.updated_by) == (1, "unknown")
    assert applied.updated_micros > 0
    wanted.revision, wanted.updated_micros, wanted.updated_by = 1, applied.updated_micros, "unknown"
    assert applied == wanted
    assert await registry.rpc.GetDeployment(pb.GetDeploymentRequest(name="flights")) == wanted
    assert "0.2" not in (await registry.history())[0].details_json  # values of columns stay out of the history


async def test_versions_must_be_registered(registry: "Registry") -> None:
    await registry.make_version()
    broken = registry.deployment(weights={1: 50, 7: 50})
    broken.shadows.append(ref(8))
    broken.fallbacks.append(step(ref=ref(1, "heuristic")))
    with pytest.raises(FailedPrecondition, match="delay/7, delay/8, heuristic/1"):
        await registry.apply(broken)
    with pytest.raises(NotFound):
        await registry.rpc.GetDeployment(pb.GetDeploymentRequest(name="flights"))


async def test_read_change_apply(registry: "Registry") -> None:
    for _ in range(2):
        await registry.make_version()
    first = await registry.apply(registry.deployment(weights={1: 100}))
    changed = await registry.rpc.GetDeployment(pb.GetDeploymentRequest(name="flights"))
    del changed.traffic[:]
    changed.traffic.extend([share(90, 1), share(10, 2)])
    second = await registry.apply(changed, expected=first.revision)
    assert second.revision == 2
    with pytest.raises(Conflict, match="is at revision 2, expected 1"):
        await registry.apply(changed, expected=1)
    for revision, wanted in ((0, second), (1, first), (2, second)):
        assert await registry.rpc.GetDeployment(pb.GetDeploymentRequest(name="flights", revision=revision)) == wanted
    with pytest.raises(NotFound, match="its last is 2"):
        await registry.rpc.GetDeployment(pb.GetDeploymentRequest(name="flights", revision=3))
    with pytest.raises(InvalidInput):
        await registry.rpc.GetDeployment(pb.GetDeploymentRequest(name="flights", revision=-1))
    details = json.loads((await registry.history("deployment:"))[0].details_json)
    assert details == {
        "revision": 2,
        "changed": {"traffic": {"from": {"delay/1": 100.0}, "to": {"delay/1": 90.0, "delay/2": 10.0}}},
    }


async def test_expected_revisions(registry: "Registry") -> None:
    await registry.make_version()
    wanted = registry.deployment()
    with pytest.raises(Conflict, match="does not exist"):
        await registry.apply(wanted, expected=1)
    assert (await registry.apply(wanted, expected=-1)).revision == 1
    with pytest.raises(AlreadyExists):
        await registry.apply(wanted, expected=-1)
    assert (await registry.apply(wanted)).revision == 2
    with pytest.raises(InvalidInput):
        await registry.apply(wanted, expected=-2)


async def test_one_of_two_concurrent_writers_gets_a_conflict(registry: "Registry") -> None:
    await registry.make_version()
    await registry.apply(registry.deployment())
    answers = await asyncio.gather(
        *(registry.apply(registry.deployment(), expected=1) for _ in range(8)), return_exceptions=True
    )
    assert sorted(type(answer).__name__ for answer in answers) == ["Conflict"] * 7 + ["Deployment"]


async def test_a_deleted_deployment_keeps_its_revisions(registry: "Registry") -> None:
    await registry.make_version()
    for name in ("b", "a"):
        await registry.apply(registry.deployment(name))
    delete = pb.DeleteDeploymentRequest(name="a")
    await registry.rpc.DeleteDeployment(delete)
    with pytest.raises(NotFound):
        await registry.rpc.DeleteDeployment(delete)
    with pytest.raises(NotFound):
        await registry.rpc.GetDeployment(pb.GetDeploymentRequest(name="a"))
    assert (await registry.rpc.GetDeployment(pb.GetDeploymentRequest(name="a", revision=1))).revision == 1
    listed = await registry.rpc.ListDeployments(pb.ListDeploymentsRequest())
    assert [deployment.name for deployment in listed.deployments] == ["b"]
    with pytest.raises(Conflict):
        await registry.apply(registry.deployment("a"), expected=1)
    assert (await registry.apply(registry.deployment("a"), expected=-1)).revision == 2
    listed = await registry.rpc.ListDeployments(pb.ListDeploymentsRequest())
    assert [deployment.name for deployment in listed.deployments] == ["a", "b"]
