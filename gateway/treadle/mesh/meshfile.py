"""`<home>/mesh.json`: the addresses of the running mesh, for other commands."""

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Self

from treadle.core.files import write_atomically

DEFAULT_HOME = ".treadle"
_NAME = "mesh.json"


@dataclass(frozen=True)
class MeshFile:
    """The file that describes a running mesh. Its supervisor writes it at start and removes it at the end."""

    supervisor_pid: int
    control: str
    """Path of the control socket."""
    addresses: dict[str, str]
    """gRPC address of each service."""
    rest: str
    """""host:port" of the REST API."""
    metrics: dict[str, str]
    logs: dict[str, str]
    pids: dict[str, int] = field(default_factory=dict)

    @classmethod
    def read(cls, home: Path) -> Self | None:
        """The running mesh of a home; None if no supervisor runs there."""
        try:
            found = cls(**json.loads((home / _NAME).read_text()))
        except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError, TypeError):
            return None
        return found if _alive(found.supervisor_pid) else None

    def write(self, home: Path) -> None:
        """Replaces the file atomically, so that no reader sees a part of it."""
        write_atomically(home / _NAME, (json.dumps(asdict(self), indent=2) + "\n").encode())

    @staticmethod
    def remove(home: Path) -> None:
        """Removes the file."""
        (home / _NAME).unlink(missing_ok=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
