"""The import path, by which a process reaches code that users wrote."""

import sys
from pathlib import Path

from treadle.core.errors import FailedPrecondition


def add_path(folder: Path) -> Path:
    """Puts a folder in front of `sys.path`, once; answers with its full path. FailedPrecondition if it is none."""
    folder = folder.resolve()
    if not folder.is_dir():
        raise FailedPrecondition(f"there is no folder {folder} to import users' modules from")
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    return folder
