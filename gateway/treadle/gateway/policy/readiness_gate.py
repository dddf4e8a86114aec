"""When a deployment changes versions: the old ones answer until the new ones can.

The inference service keeps what is replaced until what replaces it is READY, and a while longer. So the gateway goes on
with the previous policy until then: no request meets a version that is still loading. A deployment that is new has
nothing to go on with, and an inference service that cannot be asked gives no reason to wait.
"""

import asyncio
from collections.abc import Callable, Mapping

from treadle import oip
from treadle.core.errors import NotFound, TreadleError
from treadle.core.model_ref import ModelRef
from treadle.gateway.policy.deployments import Deployment

_ASK_SECONDS = 0.05
_ASK_TIMEOUT_SECONDS = 2.0


class ReadinessGate:
    """Knows which versions are READY. `changed` is called when one has become so."""

    def __init__(self, inference: oip.GRPCInferenceServiceStub, changed: Callable[[], None]) -> None:
        self._inference = inference
        self._changed = changed
        self._ready: set[ModelRef] = set()
        self._asking: dict[ModelRef, asyncio.Task[None]] = {}

    def chosen(self, serving: Mapping[str, Deployment], wanted: Mapping[str, Deployment]) -> dict[str, Deployment]:
        """Of each wanted deployment the policy to serve now: the one that serves where the wanted one must wait."""
        named = {ref for deployment in wanted.values() for ref in _traffic(deployment)}
        self._ready &= named
        for ref in self._asking.keys() - named:
            self._asking.pop(ref).cancel()
        return {name: self._one(serving.get(name), deployment) for name, deployment in wanted.items()}

    async def close(self) -> None:
        """Asks no more."""
        tasks = list(self._asking.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _one(self, serving: Deployment | None, wanted: Deployment) -> Deployment:
        traffic = _traffic(wanted)
        if serving is None:
            return wanted
        served = _traffic(serving)
        waiting = [ref for ref in traffic if ref not in served and ref not in self._ready]
        for ref in waiting:
            if ref not in self._asking:
                self._asking[ref] = asyncio.get_running_loop().create_task(self._until_ready(ref))
        return serving if waiting else wanted

    async def _until_ready(self, ref: ModelRef) -> None:
        request = oip.ModelReadyRequest(name=ref.model, version=str(ref.version))
        while not await self._answers(request):  # noqa: ASYNC110  # another process: no event to wait for
            await asyncio.sleep(_ASK_SECONDS)
        self._ready.add(ref)
        self._asking.pop(ref, None)
        self._changed()

    async def _answers(self, request: oip.ModelReadyRequest) -> bool:
        try:
            return (await self._inference.ModelReady(request, timeout=_ASK_TIMEOUT_SECONDS)).ready
        except NotFound:  # it has not heard of the deployment yet
            return False
        except TreadleError:  # it cannot be asked: waiting for it would help nobody
            return True


def _traffic(deployment: Deployment) -> frozenset[ModelRef]:
    return frozenset(share.ref for share in deployment.traffic if share.weight > 0)
