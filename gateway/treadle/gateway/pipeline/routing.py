"""Which version answers: pinned, sticky by key, or by chance. Pure functions."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b

from treadle.core.column import Column
from treadle.core.errors import FailedPrecondition, InvalidInput, Violation
from treadle.core.model_ref import ModelRef
from treadle.core.numbers import whole_number
from treadle.gateway.policy.deployments import Deployment, Share
from treadle.rpc.context import VERSION_HEADER


@dataclass(frozen=True, slots=True)
class Route:
    """The chosen version and how it was chosen: "traffic" or "pinned"."""

    ref: ModelRef
    served_by: str


def route(deployment: Deployment, *, pin: int | None, key: str, random: Callable[[], float]) -> Route:
    """A pin wins; else equal keys get equal versions; else (empty key) `random()` in [0, 1) decides.

    FailedPrecondition when the deployment does not name the pinned version.
    """
    if pin is not None:
        return Route(pinned(deployment, pin), "pinned")
    if len(deployment.traffic) == 1:
        return Route(deployment.traffic[0].ref, "traffic")
    point = position(deployment.name, key) if key else random() * 100.0
    return Route(pick(deployment.traffic, point), "traffic")


def position(deployment: str, key: str) -> float:
    """Where a key stands in [0, 100): spread evenly, the same in every process, another for each deployment."""
    digest = blake2b(f"{deployment}\0{key}".encode(), digest_size=7).digest()
    # 53 bits fit a float exactly, so the quotient stays under 1.
    return (int.from_bytes(digest) >> 3) / (1 << 53) * 100.0


def pick(traffic: Sequence[Share], point: float) -> ModelRef:
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


def sticky_key(sticky_key: str, request_id: str, entities: Mapping[str, Column], sticky_entity: str) -> str:
    """The caller's key, else the first row of the sticky entity, else the request id; empty: none."""
    if sticky_key:
        return sticky_key
    column = entities.get(sticky_entity)
    return str(column.values[0]) if column is not None else request_id


def parse_pin(metadata: Mapping[str, str]) -> int | None:
    """The version asked for by metadata `treadle-pin-version`; InvalidInput unless it is a positive number."""
    text = metadata.get(VERSION_HEADER)
    if text is None:
        return None
    version = whole_number(text)
    if not version:
        what = "must be a version number such as 3"
        raise InvalidInput(f"metadata {VERSION_HEADER} {what}", [Violation(VERSION_HEADER, what)])
    return version


def pinned(deployment: Deployment, version: int) -> ModelRef:
    """The deployment's version of that number; FailedPrecondition when it does not name one."""
    refs = [ref for ref in deployment.refs if ref.version == version]
    if not refs:
        there = ", ".join(map(str, deployment.refs))
        raise FailedPrecondition(f"deployment {deployment.name!r} does not name a version {version}; it has {there}")
    # "Of the deployment's model" first: a heuristic fallback may be another model with the same number.
    return next((ref for ref in refs if ref.model == deployment.primary.model), refs[0])
