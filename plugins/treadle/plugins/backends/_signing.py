"""A digest beside a model file, for readers that crash on damaged ones.

XGBoost's and LightGBM's parsers trust their input: half a file can end the process. So they only ever see a file that
is whole.
"""

import hashlib
from pathlib import Path

from treadle.plugins.errors import BackendFault


def seal(file: Path) -> None:
    """Writes FILE.sha256."""
    _beside(file).write_text(hashlib.sha256(file.read_bytes()).hexdigest() + "\n")


def read_sealed(file: Path) -> bytes:
    """The file's bytes. Raises BackendFault unless they are those that were sealed."""
    try:
        data, wanted = file.read_bytes(), _beside(file).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise BackendFault(f"{file.name} or its digest cannot be read: {type(error).__name__}") from error
    if hashlib.sha256(data).hexdigest() != wanted:
        raise BackendFault(f"{file.name} is not what was saved: its digest is another")
    return data


def _beside(file: Path) -> Path:
    return file.with_name(f"{file.name}.sha256")
