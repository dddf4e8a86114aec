"""A deployment that changes versions goes on with the old ones until the new ones are READY."""

import asyncio
from typing import Any

import pytest

from treadle import oip
from treadle.core.errors import NotFound, TreadleError, Unavailable
from treadle.core.model_ref import ModelRef
from treadle.gateway.policy.deployments import ServedDeployment, ServedShare
from treadle.gateway.policy.readiness_gate import ReadinessGate

OLD, NEW, NEWER = ModelRef("m", 1), ModelRef("m", 2), ModelRef("m", 3)


class FakeInference:
    """Knows which versions are READY; what it does not know it has not heard of."""

    def __init__(self) -> None:
        self.ready: dict[ModelRef, bool | TreadleError] = {}

    async def ModelReady(self, request: oip.ModelReadyRequest, timeout: float) -> oip.ModelReadyResponse:
        answer = self.ready.get(ModelRef(request.name, int(request.version)), NotFound("not here"))
        if isinstance(answer, TreadleError):
            raise answer
        return oip.ModelReadyResponse(ready=answer)


def deployment(*refs: ModelRef, unused: ModelRef | None = None) -> ServedDeployment:
    """Traffic in equal parts to `refs`; `unused` has a share of nothing."""
    shares = [ServedShare(ref, 100 / len(refs)) for ref in refs]
    return ServedDeployment("d", (*shares, *([ServedShare(unused, 0.0)] if unused else [])))


@pytest.fixture
def inference() -> FakeInference:
    return FakeInference()


@pytest.fixture
def changes() -> list[str]:
    """An entry each time that a version has become READY."""
    return []


@pytest.fixture
def gate(inference: Any, changes: list[str]) -> ReadinessGate:
    return ReadinessGate(inference, lambda: changes.append("changed"))


def selected(gate: ReadinessGate, serving: ServedDeployment | None, wanted: ServedDeployment) -> ServedDeployment:
    return gate.select({} if serving is None else {"d": serving}, {"d": wanted})["d"]


def test_a_new_deployment_has_nothing_to_wait_with(gate: ReadinessGate) -> None:
    assert selected(gate, None, deployment(NEW)) == deployment(NEW)


def test_a_change_of_shares_needs_no_wait(gate: ReadinessGate) -> None:
    assert selected(gate, deployment(OLD, NEW), deployment(NEW)) == deployment(NEW)


def test_a_version_without_traffic_is_not_waited_for(gate: ReadinessGate) -> None:
    wanted = deployment(OLD, unused=NEW)
    assert selected(gate, deployment(OLD), wanted) == wanted


async def test_the_old_versions_serve_until_all_new_ones_are_ready(
    gate: ReadinessGate, inference: FakeInference, changes: list[str]
) -> None:
    wanted = deployment(NEW, NEWER)
    assert selected(gate, deployment(OLD), wanted) == deployment(OLD)
    await gate.poll()
    assert not changes
    inference.ready[NEW] = True
    await gate.poll()
    assert changes == ["changed"]
    assert selected(gate, deployment(OLD), wanted) == deployment(OLD)
    inference.ready[NEWER] = True
    await gate.poll()
    assert selected(gate, deployment(OLD), wanted) == wanted


async def test_an_inference_service_that_cannot_be_asked_holds_nothing_back(
    gate: ReadinessGate, inference: FakeInference
) -> None:
    inference.ready[NEW] = Unavailable("away")
    assert selected(gate, deployment(OLD), deployment(NEW)) == deployment(OLD)
    await gate.poll()
    assert selected(gate, deployment(OLD), deployment(NEW)) == deployment(NEW)


async def test_a_version_that_left_and_returns_is_asked_about_again(
    gate: ReadinessGate, inference: FakeInference
) -> None:
    inference.ready[NEW] = True
    selected(gate, deployment(OLD), deployment(NEW))
    await gate.poll()
    selected(gate, deployment(NEW), deployment(OLD))  # rolled back
    inference.ready[NEW] = False
    assert selected(gate, deployment(OLD), deployment(NEW)) == deployment(OLD)


async def test_it_asks_by_itself_while_a_version_is_awaited(inference: Any) -> None:
    opened = asyncio.Event()
    gate = ReadinessGate(inference, opened.set)
    running = asyncio.create_task(gate.run())
    selected(gate, deployment(OLD), deployment(NEW))
    inference.ready[NEW] = True
    await opened.wait()
    running.cancel()
    await asyncio.wait([running])
