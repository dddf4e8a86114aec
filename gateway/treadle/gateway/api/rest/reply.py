"""How every REST answer is written."""

import json
from typing import Any

from starlette.responses import Response


def reply(content: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """JSON, without NaN."""
    body = json.dumps(content, allow_nan=False, separators=(",", ":")).encode()
    return Response(body, status, headers, "application/json")
