"""The import path of a process: the folders with the modules that users wrote."""

import sys
from pathlib import Path

from treadle.core.errors import FailedPrecondition


def add_path(folder: Path) -> Path:
    """Puts a folder in front of `sys.path`, once, and returns its absolute path.

    FailedPrecondition if there is no such folder.
    """
    folder = folder.resolve()
    if not folder.is_dir():
        raise FailedPrecondition(f"there is no folder {folder} to import users' modules from")
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    return folder
