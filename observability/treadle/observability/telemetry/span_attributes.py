"""What request spans may say of a request, and as what: Envoy knows attributes only as text."""

from collections.abc import Callable, Mapping
from typing import Final

REQUEST_ATTRIBUTES: Final[Mapping[str, Callable[[str], str | int | float]]] = {
    "treadle.batch.id": int,
    "treadle.batch.queue_ms": float,
    "treadle.batch.size": int,
    "treadle.degraded_reason": str,
    "treadle.deployment": str,
    "treadle.ledger.kind": str,
    "treadle.model": str,
    "treadle.rows": int,
    "treadle.served_by": str,
    "treadle.service": str,
    "treadle.version": int,
}
"""By name, what makes its value from text. Services set these; an attribute that is not here stays in the process."""
