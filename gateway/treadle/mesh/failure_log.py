"""The last line of the log of a service that ends with an error."""

import json
import sys
import traceback
from datetime import UTC, datetime


def log_failure(service: str, error: BaseException) -> None:
    """The last line of the log, in the form of the others: what the supervisor shows."""
    line = {
        "service": service,
        "event": f"ended: {getattr(error, 'message', None) or f'{type(error).__name__}: {error}'}",
        "level": "error",
        "timestamp": datetime.now(UTC).isoformat(),
        "traceback": "".join(traceback.format_exception(error)),
    }
    sys.stderr.write(json.dumps(line) + "\n")
    sys.stderr.flush()
