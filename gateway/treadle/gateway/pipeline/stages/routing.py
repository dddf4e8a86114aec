"""Which version answers: pinned, sticky by key, or by chance."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from hashlib import blake2b

from treadle.core.errors import FailedPrecondition, InvalidInput, TreadleError, Violation
from treadle.core.model_ref import ModelRef
from treadle.core.numbers import whole_number
from treadle.gateway.pipeline.batch.request_batch import RequestBatch
from treadle.gateway.pipeline.stages.stage import Handler
from treadle.gateway.policy.deployments import ServedDeployment, ServedShare, ServedStep
from treadle.rpc.context import VERSION_HEADER

TRAFFIC, PINNED = "traffic", "pinned"


class Route:
    """Hands each version the batch of its requests. A request for a version that is not there fails."""

    def __init__(self, random: Callable[[], float]) -> None:
        """`random` gives numbers in [0, 1), for requests without a key."""
        self._random = random

    async def __call__(self, batch: RequestBatch, next_stage: Handler) -> None:
        """Stage."""
        parts = [
            replace(batch.take(indices), chosen=ref, step=ServedStep("", ref))
            for ref, indices in partition_by_version(batch, self._random).items()
        ]
        if len(parts) == 1:
            await next_stage(parts[0])
        elif parts:
            await asyncio.gather(*[next_stage(part) for part in parts])


def partition_by_version(batch: RequestBatch, random: Callable[[], float]) -> Mapping[ModelRef, Sequence[int]]:
    """Which requests go to which version, by position in the batch, and says on each how its version was chosen.

    A request for a version that the deployment does not name fails.
    """
    parts: dict[ModelRef, list[int]] = {}
    for index, pending in enumerate(batch.requests):
        try:
            pending.route, ref = _route(batch, index, random)
        except TreadleError as error:
            pending.fail(error)
        else:
            parts.setdefault(ref, []).append(index)
    return parts


def _route(batch: RequestBatch, index: int, random: Callable[[], float]) -> tuple[str, ModelRef]:
    deployment, version = batch.deployment, batch.requests[index].request.version
    if version is not None:
        return PINNED, pinned(deployment, version)
    if len(deployment.traffic) == 1:
        return TRAFFIC, deployment.traffic[0].ref
    return TRAFFIC, choose(deployment, _key(batch, index), random)


def _key(batch: RequestBatch, index: int) -> str:
    """The caller's key, else the first row of the sticky entity, else the request id; empty: none."""
    request = batch.requests[index].request
    if request.sticky_key:
        return request.sticky_key
    column = batch.entities.get(batch.deployment.sticky_entity)
    return request.request_id if column is None else str(column.values[batch.starts[index]])


def choose(deployment: ServedDeployment, key: str, random: Callable[[], float]) -> ModelRef:
    """The version for a key: equal keys get equal versions; without a key `random()` in [0, 1) decides."""
    return pick(deployment.traffic, position(deployment.name, key) if key else random() * 100.0)


def position(deployment: str, key: str) -> float:
    """Where a key stands in [0, 100): spread evenly, the same in every process, another for each deployment."""
    digest = blake2b(f"{deployment}\0{key}".encode(), digest_size=7).digest()
    # 53 bits fit a float exactly, so the quotient stays under 1.
    return (int.from_bytes(digest) >> 3) / (1 << 53) * 100.0


def pick(traffic: Sequence[ServedShare], point: float) -> ModelRef:
    """The version whose range holds `point`.

    The ranges lie end to end in [0, 100), ordered by version and not by weight or by place in the policy. So when
    weights change, a key moves only if a border passes it: with two versions exactly the difference moves.
    """
    shares = sorted((share for share in traffic if share.weight > 0), key=lambda share: share.ref)
    scale = sum(share.weight for share in shares) / 100.0
    border = 0.0
    for share in shares:
        border += share.weight / scale
        if point < border:
            return share.ref
    return shares[-1].ref  # rounding left the last border a hair under 100


def parse_version(metadata: Mapping[str, str]) -> int | None:
    """The version asked for by metadata `treadle-pin-version`; InvalidInput unless it is a positive number."""
    text = metadata.get(VERSION_HEADER)
    if text is None:
        return None
    version = whole_number(text)
    if not version:
        what = "must be a version number such as 3"
        raise InvalidInput(f"metadata {VERSION_HEADER} {what}", [Violation(VERSION_HEADER, what)])
    return version


def pinned(deployment: ServedDeployment, version: int) -> ModelRef:
    """The deployment's version of that number; FailedPrecondition when it does not name one."""
    refs = [ref for ref in deployment.refs if ref.version == version]
    if not refs:
        there = ", ".join(map(str, deployment.refs))
        raise FailedPrecondition(f"deployment {deployment.name!r} does not name a version {version}; it has {there}")
    # "Of the deployment's model" first: a heuristic fallback may be another model with the same number.
    return next((ref for ref in refs if ref.model == deployment.primary.model), refs[0])
