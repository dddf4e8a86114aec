"""What a deployment must fulfil before it is applied: how traffic is shared, shadowed, and answered in need.

Plain objects: `codec` makes them from the contract.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from treadle.core.model_ref import ModelRef
from treadle.registry.checks import Problems
from treadle.registry.manifest import check_ref

_WHOLE = 100.0
# Thirds written with a few decimals still count as a whole.
_TOLERANCE = 1e-6


@dataclass(frozen=True, slots=True)
class Share:
    """A version's share of the traffic, percent."""

    ref: ModelRef
    weight: float


@dataclass(frozen=True, slots=True)
class Step:
    """One step of the fallback chain: another version, or a constant answer (the names of its columns)."""

    name: str
    timeout_seconds: float
    ref: ModelRef | None = None
    constant: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Policy:
    """What the registry looks at. `body` is the whole deployment, serialized, without what the registry sets."""

    name: str
    body: bytes
    traffic: tuple[Share, ...] = ()
    shadows: tuple[ModelRef, ...] = ()
    fallbacks: tuple[Step, ...] = ()
    sticky_entity: str = ""
    timeout_seconds: float = 0.0
    feature_timeout_seconds: float = 0.0
    feature_policy: str = ""
    description: str = ""
    restored_revision: int = 0

    def refs(self) -> list[ModelRef]:
        """Every version that it names, each once, in order."""
        named = [share.ref for share in self.traffic]
        named += self.shadows
        named += [step.ref for step in self.fallbacks if step.ref is not None]
        return list(dict.fromkeys(named))

    def summary(self) -> dict[str, object]:
        """For the history: what decides who answers. No values of constant answers."""
        return {
            "traffic": {str(share.ref): share.weight for share in self.traffic},
            "shadows": [str(ref) for ref in self.shadows],
            "fallbacks": [
                {"name": s.name, "timeout_seconds": s.timeout_seconds}
                | ({"model": str(s.ref)} if s.ref else {"constant": list(s.constant)})
                for s in self.fallbacks
            ],
            "sticky_entity": self.sticky_entity,
            "timeout_seconds": self.timeout_seconds,
            "feature_timeout_seconds": self.feature_timeout_seconds,
            "feature_policy": self.feature_policy,
            "description": self.description,
            "restored_revision": self.restored_revision,
        }


def check(policy: Policy) -> None:
    """InvalidInput with everything that is wrong, whatever the state of the registry."""
    problems = Problems("the deployment cannot be applied")
    problems.name("deployment.name", policy.name)
    problems.text("deployment.sticky_entity", policy.sticky_entity, 256)
    problems.text("deployment.description", policy.description)
    _check_traffic(problems, policy.traffic)
    _check_shadows(problems, policy)
    _check_fallbacks(problems, policy.fallbacks)
    _check_timeout(problems, "deployment.timeout_seconds", policy.timeout_seconds)
    _check_timeout(problems, "deployment.feature_timeout_seconds", policy.feature_timeout_seconds)
    if 0 < policy.timeout_seconds < policy.feature_timeout_seconds:
        problems.add("deployment.feature_timeout_seconds", "must not be longer than timeout_seconds")
    if not policy.feature_policy:
        problems.add("deployment.feature_policy", "is not one that this registry knows")
    if policy.restored_revision < 0:
        problems.add("deployment.restored_revision", "must be a revision, or 0 for none")
    problems.raise_if_any()


def _check_traffic(problems: Problems, traffic: Sequence[Share]) -> None:
    field = "deployment.traffic"
    if not traffic:
        problems.add(field, "must not be empty")
        return
    for i, share in enumerate(traffic):
        check_ref(problems, f"{field}[{i}].ref", share.ref)
        if not 0 <= share.weight <= _WHOLE:  # false for NaN as well
            problems.add(f"{field}[{i}].weight", "must be 0 to 100")
    problems.once(field, (share.ref for share in traffic))
    total = math.fsum(share.weight for share in traffic)
    if not abs(total - _WHOLE) <= _TOLERANCE:
        problems.add(field, f"has weights that sum to {total:g}, wanted 100")


def _check_shadows(problems: Problems, policy: Policy) -> None:
    field = "deployment.shadows"
    serving = {share.ref for share in policy.traffic}
    for i, ref in enumerate(policy.shadows):
        check_ref(problems, f"{field}[{i}]", ref)
        if ref in serving:
            problems.add(f"{field}[{i}]", f"{ref} has a share of the traffic already")
    problems.once(field, policy.shadows)


def _check_fallbacks(problems: Problems, steps: Sequence[Step]) -> None:
    field = "deployment.fallbacks"
    for i, step in enumerate(steps):
        problems.name(f"{field}[{i}].name", step.name)
        _check_timeout(problems, f"{field}[{i}].timeout_seconds", step.timeout_seconds)
        if step.ref is not None:
            check_ref(problems, f"{field}[{i}].ref", step.ref)
        elif not step.constant:
            problems.add(f"{field}[{i}]", "needs an answer: a ref, or a constant with outputs")
    problems.once(field, (step.name for step in steps))


def _check_timeout(problems: Problems, field: str, seconds: float) -> None:
    if not 0 <= seconds < math.inf:
        problems.add(field, "must be a number of seconds, 0 or more")
