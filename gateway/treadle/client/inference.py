"""Loaded models of the inference service: list, load, unload, wait."""

import asyncio
from functools import cached_property
from typing import NamedTuple

from treadle import oip
from treadle.client.references import format_ref
from treadle.client.versions import RegistryConnection
from treadle.core.errors import DeadlineExceeded, FailedPrecondition, NotFound
from treadle.v1 import registry_pb2, types_pb2

# Loading a large model takes longer than other calls may.
_LOAD_SECONDS = 180.0
_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.1, 1.0


class ModelListing(NamedTuple):
    """The state of one version in the inference service."""

    model: str
    version: str
    state: str
    """LOADING, READY, UNLOADING or UNAVAILABLE."""
    reason: str
    """Why it is UNAVAILABLE."""


class Inference(RegistryConnection):
    """The model-loading methods of a client. Deployed versions are loaded without them."""

    @cached_property
    def _oip(self) -> oip.GRPCInferenceServiceStub:
        return oip.GRPCInferenceServiceStub(self.channel)

    async def loaded_models(self) -> list[ModelListing]:
        """The state of every version in the inference service."""
        index = await self._oip.RepositoryIndex(oip.RepositoryIndexRequest())
        return [ModelListing(each.name, each.version, each.state, each.reason) for each in index.models]

    async def load_model(self, version: str) -> None:
        """Loads, verifies and warms up a version ("model/3", "model@alias"), and pins it."""
        ref = await self._resolve(version)
        await self._oip.RepositoryModelLoad(
            oip.RepositoryModelLoadRequest(model_name=ref.model, parameters=_version(ref)), timeout=_LOAD_SECONDS
        )

    async def unload_model(self, version: str) -> None:
        """Unpins and unloads a version. FailedPrecondition while a deployment needs it."""
        ref = await self._resolve(version)
        await self._oip.RepositoryModelUnload(
            oip.RepositoryModelUnloadRequest(model_name=ref.model, parameters=_version(ref))
        )

    async def wait_until_loaded(self, *versions: str, timeout_seconds: float = 120.0) -> None:
        """Waits until the versions are READY in the inference service, such as after `deploy`.

        FailedPrecondition with the reason if one can't be loaded; DeadlineExceeded.
        """
        wanted = [await self._resolve(version) for version in versions]
        try:
            async with asyncio.timeout(timeout_seconds):
                pause = _FIRST_PAUSE_SECONDS
                while waiting := _not_ready(wanted, await self.loaded_models()):
                    await asyncio.sleep(pause)
                    pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
        except TimeoutError:
            raise DeadlineExceeded(f"not loaded within {timeout_seconds:g} s: {', '.join(waiting)}") from None

    async def wait_until_ready(self, deployment: str, timeout_seconds: float = 120.0) -> None:
        """Waits until a deployment's versions, fallbacks included, are loaded and the gateway sends it traffic.

        NotFound; FailedPrecondition with the reason if a version can't be loaded; DeadlineExceeded.
        """
        policy = await self._registry.GetDeployment(registry_pb2.GetDeploymentRequest(name=deployment))
        refs = [share.ref for share in policy.traffic] + [step.ref for step in policy.fallbacks if step.HasField("ref")]
        await self.wait_until_loaded(*map(format_ref, refs), timeout_seconds=timeout_seconds)
        try:
            async with asyncio.timeout(timeout_seconds):
                while not await self._gateway_serves(policy):  # noqa: ASYNC110  # another process: no event to wait for
                    await asyncio.sleep(_FIRST_PAUSE_SECONDS)
        except TimeoutError:
            raise DeadlineExceeded(
                f"the gateway does not know {deployment!r} after {timeout_seconds:g} s: can it reach the registry?"
            ) from None

    async def _gateway_serves(self, policy: registry_pb2.Deployment) -> bool:
        """Whether the gateway has applied the policy; it applies the previous one while versions of this one load."""
        try:
            if not (await self._oip.ModelReady(oip.ModelReadyRequest(name=policy.name))).ready:
                return False
            known = await self._oip.ModelMetadata(oip.ModelMetadataRequest(name=policy.name))
        except NotFound:
            return False
        largest = max(policy.traffic, key=lambda share: (share.weight, share.ref.version)).ref
        return str(largest.version) in known.versions


def _not_ready(wanted: list[types_pb2.ModelRef], known: list[ModelListing]) -> list[str]:
    states = {f"{each.model}/{each.version}": each for each in known}
    waiting = []
    for name in map(format_ref, wanted):
        found = states.get(name)
        if found is not None and found.state == "UNAVAILABLE" and found.reason:
            raise FailedPrecondition(f"{name} can't be loaded: {found.reason}")
        if found is None or found.state != "READY":
            waiting.append(name)
    return waiting


def _version(ref: types_pb2.ModelRef) -> dict[str, oip.ModelRepositoryParameter]:
    return {"version": oip.ModelRepositoryParameter(int64_param=ref.version)}
