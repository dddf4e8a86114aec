"""How every REST answer is written."""

import json
from typing import Any

from starlette.responses import Response

_ENCODER = json.JSONEncoder(allow_nan=False, separators=(",", ":"))


def reply(content: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """JSON, without NaN."""
    return Response(_ENCODER.encode(content).encode(), status, headers, "application/json")
