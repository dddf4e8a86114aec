"""Tells the repository which versions deployments need, and remembers which ones somebody pinned.

What was desired stays desired while the registry is away, and across restarts. Only the registry takes it back.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from structlog.typing import FilteringBoundLogger

from treadle.core.errors import InvalidInput
from treadle.core.model_ref import ModelRef
from treadle.inference.models.repository import Repository
from treadle.rpc.client.channel import Channel
from treadle.rpc.client.deployment_follower import DeploymentFollower
from treadle.v1 import registry_pb2, types_pb2
from treadle.v1.registry_pb2_grpc import RegistryServiceStub


class DesiredStateFollower:
    """Follows the registry's deployments on behalf of the repository; pinned versions lie in the same file."""

    def __init__(self, channel: Channel, repository: Repository, file: Path, log: FilteringBoundLogger) -> None:
        self._repository = repository
        self._log = log
        self._follower = DeploymentFollower(
            RegistryServiceStub(channel), file, log, _Pins(repository), self._deployments_changed
        )

    async def restore(self) -> None:
        """Starts with what was desired and pinned when this process last ran."""
        await self._follower.restore()
        self._set_desired()

    async def run(self) -> None:
        """Follows the registry for ever."""
        await self._follower.run()

    async def save_pins(self) -> None:
        """Remembers what is pinned now."""
        await self._follower.save()

    async def _deployments_changed(self) -> None:
        self._set_desired()

    def _set_desired(self) -> None:
        deployments = self._follower.deployments.values()
        self._repository.set_desired({ref for deployment in deployments for ref in self._versions(deployment)})

    def _versions(self, deployment: registry_pb2.Deployment) -> set[ModelRef]:
        """Every version that a deployment may call; a reference that is none is logged and left out."""
        versions: set[ModelRef] = set()
        for ref in _refs(deployment):
            try:
                versions.add(ModelRef.checked(ref.model, ref.version))
            except InvalidInput as error:
                self._log.warning(
                    "a deployment names no model version", deployment=deployment.name, error=error.message
                )
        return versions


class _Pins:
    """The repository's pinned versions, as they are kept beside the deployments."""

    def __init__(self, repository: Repository) -> None:
        self._repository = repository

    def to_dict(self) -> dict[str, Any]:
        return {"pinned": [str(ref) for ref in sorted(self._repository.pinned)]}

    def load(self, kept: Mapping[str, Any]) -> None:
        self._repository.pin([ModelRef.parse(text) for text in kept["pinned"]])


def _refs(deployment: registry_pb2.Deployment) -> list[types_pb2.ModelRef]:
    fallbacks = [step.ref for step in deployment.fallbacks if step.WhichOneof("answer") == "ref"]
    return [*(share.ref for share in deployment.traffic), *deployment.shadows, *fallbacks]
