"""The health check of a container: exit status 0 if its service serves."""

import asyncio
import os
import sys

from treadle.mesh.health import HealthStatus, check


def main() -> int:
    """Checks the health of the whole process at the port of TREADLE_LISTEN."""
    port = os.environ["TREADLE_LISTEN"].rpartition(":")[2]
    health = asyncio.run(check(f"127.0.0.1:{port}"))
    if health is HealthStatus.SERVING:
        return 0
    sys.stderr.write(f"{health.value}\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())
