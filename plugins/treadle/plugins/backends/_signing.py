"""A digest beside a model file, for parsers that crash on damaged files.

The parsers of XGBoost and LightGBM trust their input: half a file can crash the process. So a file is parsed only if
its digest is right.
"""

import hashlib
from pathlib import Path

from treadle.plugins.errors import BackendFault


def sign(file: Path) -> None:
    """Writes the SHA-256 digest of a file to FILE.sha256."""
    _digest_file(file).write_text(hashlib.sha256(file.read_bytes()).hexdigest() + "\n")


def read_signed(file: Path) -> bytes:
    """The bytes of a signed file. Raises BackendFault unless they match its digest."""
    try:
        data, wanted = file.read_bytes(), _digest_file(file).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise BackendFault(f"{file.name} or its digest cannot be read: {type(error).__name__}") from error
    if hashlib.sha256(data).hexdigest() != wanted:
        raise BackendFault(f"{file.name} is not what was saved: its digest is another")
    return data


def _digest_file(file: Path) -> Path:
    return file.with_name(f"{file.name}.sha256")
