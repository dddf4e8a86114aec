"""Validation of deployments before they are applied: traffic shares, shadows, fallback chain, timeouts.

`codec` decodes these plain objects from messages.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from treadle.core.model_ref import ModelRef
from treadle.registry.checks import ViolationCollector
from treadle.registry.manifest import check_ref

_TOTAL_PERCENT = 100.0
# Thirds written with a few decimals still sum to 100.
_PERCENT_TOLERANCE = 1e-6


@dataclass(frozen=True, slots=True)
class TrafficShare:
    """A version's share of the traffic, percent."""

    ref: ModelRef
    weight: float


@dataclass(frozen=True, slots=True)
class FallbackStep:
    """One step of the fallback chain: another version, or a constant answer (its output names)."""

    name: str
    timeout_seconds: float
    ref: ModelRef | None = None
    constant: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class DeploymentPolicy:
    """The fields of a deployment that the registry validates.

    `body` is the serialized `treadle.v1.Deployment` without the fields that the registry sets.
    """

    name: str
    body: bytes
    traffic: tuple[TrafficShare, ...] = ()
    shadows: tuple[ModelRef, ...] = ()
    fallbacks: tuple[FallbackStep, ...] = ()
    sticky_entity: str = ""
    timeout_seconds: float = 0.0
    feature_timeout_seconds: float = 0.0
    feature_policy: str = ""
    description: str = ""
    restored_revision: int = 0

    def refs(self) -> list[ModelRef]:
        """Every model version in traffic, shadows and fallbacks, each once, in order."""
        named = [share.ref for share in self.traffic]
        named += self.shadows
        named += [step.ref for step in self.fallbacks if step.ref is not None]
        return list(dict.fromkeys(named))

    def summary(self) -> dict[str, object]:
        """The policy as JSON object for the history, without the values of constant answers."""
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


def check(policy: DeploymentPolicy) -> None:
    """Checks that do not depend on stored data. InvalidInput lists all violations."""
    violations = ViolationCollector("the deployment cannot be applied")
    violations.check_name("deployment.name", policy.name)
    violations.check_text("deployment.sticky_entity", policy.sticky_entity, 256)
    violations.check_text("deployment.description", policy.description)
    _check_traffic(violations, policy.traffic)
    _check_shadows(violations, policy)
    _check_fallbacks(violations, policy.fallbacks)
    _check_timeout(violations, "deployment.timeout_seconds", policy.timeout_seconds)
    _check_timeout(violations, "deployment.feature_timeout_seconds", policy.feature_timeout_seconds)
    if 0 < policy.timeout_seconds < policy.feature_timeout_seconds:
        violations.add("deployment.feature_timeout_seconds", "must not be longer than timeout_seconds")
    if not policy.feature_policy:
        violations.add("deployment.feature_policy", "is not one that this registry knows")
    if policy.restored_revision < 0:
        violations.add("deployment.restored_revision", "must be a revision, or 0 for none")
    violations.raise_if_any()


def _check_traffic(violations: ViolationCollector, traffic: Sequence[TrafficShare]) -> None:
    field = "deployment.traffic"
    if not traffic:
        violations.add(field, "must not be empty")
        return
    for i, share in enumerate(traffic):
        check_ref(violations, f"{field}[{i}].ref", share.ref)
        if not 0 <= share.weight <= _TOTAL_PERCENT:  # false for NaN as well
            violations.add(f"{field}[{i}].weight", "must be 0 to 100")
    violations.check_unique(field, (share.ref for share in traffic))
    total = math.fsum(share.weight for share in traffic)
    if not abs(total - _TOTAL_PERCENT) <= _PERCENT_TOLERANCE:
        violations.add(field, f"has weights that sum to {total:g}, wanted 100")


def _check_shadows(violations: ViolationCollector, policy: DeploymentPolicy) -> None:
    field = "deployment.shadows"
    serving = {share.ref for share in policy.traffic}
    for i, ref in enumerate(policy.shadows):
        check_ref(violations, f"{field}[{i}]", ref)
        if ref in serving:
            violations.add(f"{field}[{i}]", f"{ref} has a share of the traffic already")
    violations.check_unique(field, policy.shadows)


def _check_fallbacks(violations: ViolationCollector, steps: Sequence[FallbackStep]) -> None:
    field = "deployment.fallbacks"
    for i, step in enumerate(steps):
        violations.check_name(f"{field}[{i}].name", step.name)
        _check_timeout(violations, f"{field}[{i}].timeout_seconds", step.timeout_seconds)
        if step.ref is not None:
            check_ref(violations, f"{field}[{i}].ref", step.ref)
        elif not step.constant:
            violations.add(f"{field}[{i}]", "needs an answer: a ref, or a constant with outputs")
    violations.check_unique(field, (step.name for step in steps))


def _check_timeout(violations: ViolationCollector, field: str, seconds: float) -> None:
    if not 0 <= seconds < math.inf:
        violations.add(field, "must be a number of seconds, 0 or more")
