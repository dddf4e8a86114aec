"""Deployments: traffic shares of model versions, shadows, and the fallback chain."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from treadle.client.tables import Table, to_columns
from treadle.client.versions import RegistryConnection
from treadle.core.errors import FailedPrecondition
from treadle.v1 import registry_pb2


@dataclass(frozen=True)
class Fallback:
    """One step of the fallback chain: another version, or a constant row."""

    name: str
    """Shown in `served_by` as "fallback:NAME"."""
    version: str = ""
    """ "model/3" or "model@alias"."""
    constant: Table | None = None
    """The constant answer, one row by output name: `{"probability": 0.2}`."""
    timeout_seconds: float = 0.0
    """0: the remaining deadline."""


class Deployments(RegistryConnection):
    """The deployment methods of a client."""

    async def deploy(
        self,
        name: str,
        traffic: Mapping[str, float],
        *,
        fallbacks: Sequence[Fallback] = (),
        shadows: Sequence[str] = (),
        sticky_entity: str = "",
        timeout_seconds: float = 0.0,
        feature_timeout_seconds: float = 0.0,
        strict_features: bool = False,
        description: str = "",
        reason: str = "",
        expected_revision: int = 0,
    ) -> registry_pb2.Deployment:
        """Creates or changes a deployment: `deploy("flight-delay", {"flight-delay/2": 90, "flight-delay/3": 10})`.

        Shares are percent and sum to 100. RegistryConnection are "model/3" or "model@alias"; an alias is resolved now.
        `strict_features`: stale values count as missing. With `expected_revision`, Conflict if someone else
        changed the deployment since that revision; with -1, AlreadyExists if it exists.
        """
        policy = registry_pb2.FEATURE_POLICY_STRICT if strict_features else registry_pb2.FEATURE_POLICY_SERVE
        wanted = registry_pb2.Deployment(
            name=name,
            traffic=[
                registry_pb2.TrafficShare(ref=await self._resolve(version), weight=weight)
                for version, weight in traffic.items()
            ],
            shadows=[await self._resolve(version) for version in shadows],
            fallbacks=[await self._step(fallback) for fallback in fallbacks],
            sticky_entity=sticky_entity,
            timeout_seconds=timeout_seconds,
            feature_timeout_seconds=feature_timeout_seconds,
            feature_policy=policy,
            description=description,
        )
        return await self._apply(wanted, reason, expected_revision)

    async def deployments(self) -> list[registry_pb2.Deployment]:
        """The current revision of every deployment."""
        answer = await self._registry.ListDeployments(registry_pb2.ListDeploymentsRequest())
        return list(answer.deployments)

    async def get_deployment(self, name: str, revision: int = 0) -> registry_pb2.Deployment:
        """A deployment at its current revision (0) or a given one; NotFound."""
        request = registry_pb2.GetDeploymentRequest(name=name, revision=revision)
        return await self._registry.GetDeployment(request)

    async def delete_deployment(self, name: str, reason: str = "") -> None:
        """Deletes a deployment; its history stays."""
        request = registry_pb2.DeleteDeploymentRequest(name=name, reason=reason)
        await self._registry.DeleteDeployment(request)

    async def promote(self, name: str, version: str, *, reason: str = "") -> registry_pb2.Deployment:
        """Sends all traffic of a deployment to one version ("model/3", "model@alias"); everything else stays.

        Conflict if someone else changed the deployment meanwhile.
        """
        now = await self.get_deployment(name)
        ref = await self._resolve(version)
        wanted = registry_pb2.Deployment()
        wanted.CopyFrom(now)
        del wanted.traffic[:], wanted.shadows[:]
        wanted.traffic.append(registry_pb2.TrafficShare(ref=ref, weight=100))
        wanted.shadows.extend(shadow for shadow in now.shadows if shadow != ref)
        return await self._apply(wanted, reason or f"promote {ref.model}/{ref.version}", now.revision)

    async def rollback(self, name: str, *, to_revision: int = 0, reason: str = "") -> registry_pb2.Deployment:
        """Restores the previous revision of a deployment, or `to_revision`, as a new revision.

        The new revision's `restored_revision` names the restored one, so that a rollback after a rollback goes further
        back. FailedPrecondition if there is no earlier revision; Conflict if someone else changed it meanwhile.
        """
        now = await self.get_deployment(name)
        target = to_revision or (now.restored_revision or now.revision) - 1
        if not 1 <= target < now.revision:
            again = f", which is {now.restored_revision} again" if now.restored_revision else ""
            wanted = f"no earlier revision {to_revision}" if to_revision else "no earlier revision; name one"
            raise FailedPrecondition(f"deployment {name!r} is at revision {now.revision}{again}: there is {wanted}")
        before = await self.get_deployment(name, target)
        restored = (
            before.restored_revision or target
        )  # a revision that is itself a rollback counts as the one that it restored
        why = f"rollback to revision {restored}{reason and f': {reason}'}"
        return await self._apply(before, why, now.revision, restored)

    async def _apply(
        self, wanted: registry_pb2.Deployment, reason: str, expected_revision: int, restored_revision: int = 0
    ) -> registry_pb2.Deployment:
        wanted.restored_revision = restored_revision
        for ours in ("revision", "updated_micros", "updated_by"):
            wanted.ClearField(ours)
        request = registry_pb2.ApplyDeploymentRequest(
            deployment=wanted, expected_revision=expected_revision, reason=reason
        )
        return await self._registry.ApplyDeployment(request)

    async def _step(self, fallback: Fallback) -> registry_pb2.FallbackStep:
        step = registry_pb2.FallbackStep(name=fallback.name, timeout_seconds=fallback.timeout_seconds)
        if fallback.version:
            step.ref.CopyFrom(await self._resolve(fallback.version))
        else:
            step.constant.outputs.extend(to_columns(fallback.constant))
        return step
