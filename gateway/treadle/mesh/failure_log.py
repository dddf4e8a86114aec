"""The last log line of a service that ends with an error."""

import json
import sys
import traceback
from datetime import UTC, datetime


def log_failure(service: str, error: BaseException) -> None:
    """Writes the error as the last line of the log, in the format of the other lines; the supervisor shows it."""
    line = {
        "service": service,
        "event": f"ended: {getattr(error, 'message', None) or f'{type(error).__name__}: {error}'}",
        "level": "error",
        "timestamp": datetime.now(UTC).isoformat(),
        "traceback": "".join(traceback.format_exception(error)),
    }
    sys.stderr.write(json.dumps(line) + "\n")
    sys.stderr.flush()
