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
from treadle.gateway.policy.deployments import ServedDeployment

_POLL_SECONDS = 0.05
_CALL_TIMEOUT_SECONDS = 2.0


class ReadinessGate:
    """Knows which versions are READY. `run` asks the inference service; `changed` is called when one has become so."""

    def __init__(self, inference: oip.GRPCInferenceServiceStub, changed: Callable[[], None]) -> None:
        self._inference = inference
        self._changed = changed
        self._ready: set[ModelRef] = set()
        self._awaited: set[ModelRef] = set()
        """Versions that hold back a deployment."""
        self._some_awaited = asyncio.Event()

    def select(
        self, serving: Mapping[str, ServedDeployment], wanted: Mapping[str, ServedDeployment]
    ) -> dict[str, ServedDeployment]:
        """Of each wanted deployment the policy to serve now: the one that serves where the wanted one must wait."""
        self._ready &= {ref for deployment in wanted.values() for ref in _traffic(deployment)}
        waits = {name: self._not_ready(serving.get(name), deployment) for name, deployment in wanted.items()}
        self._awaited = set().union(*waits.values())
        if self._awaited:
            self._some_awaited.set()
        return {name: serving[name] if waits[name] else deployment for name, deployment in wanted.items()}

    async def run(self) -> None:
        """Asks for ever, while versions are awaited."""
        while True:
            await self._some_awaited.wait()
            await self.poll()
            if self._awaited:
                await asyncio.sleep(_POLL_SECONDS)
            else:
                self._some_awaited.clear()

    async def poll(self) -> None:
        """Asks once for each awaited version whether it is READY."""
        refs = sorted(self._awaited)
        answers = await asyncio.gather(*map(self._is_ready, refs))
        became_ready = {ref for ref, ready in zip(refs, answers, strict=True) if ready}
        if became_ready:
            self._ready |= became_ready
            self._changed()

    def _not_ready(self, serving: ServedDeployment | None, wanted: ServedDeployment) -> set[ModelRef]:
        """Versions that must become READY before the wanted policy can take the place of the serving one."""
        return set() if serving is None else _traffic(wanted) - _traffic(serving) - self._ready

    async def _is_ready(self, ref: ModelRef) -> bool:
        request = oip.ModelReadyRequest(name=ref.model, version=str(ref.version))
        try:
            return (await self._inference.ModelReady(request, timeout=_CALL_TIMEOUT_SECONDS)).ready
        except NotFound:  # it has not heard of the deployment yet
            return False
        except TreadleError:  # it cannot be asked: waiting for it would help nobody
            return True


def _traffic(deployment: ServedDeployment) -> set[ModelRef]:
    return {share.ref for share in deployment.traffic if share.weight > 0}
