"""Loads model folders in a fresh process: `python -m treadle.plugins.testing._fresh MODULE CLASS FOLDER …`.

One line of JSON for each folder: {"folder", "outcome", "message"}; outcome is "ok", the name of an error of Treadle's
tree, or "unclean" for any other exception. A folder without a line has crashed the process.
"""

import importlib
import json
import sys
from pathlib import Path

from treadle.core.errors import TreadleError
from treadle.plugins.backend import ModelBackend
from treadle.plugins.checked import CheckedModel, ManifestSample
from treadle.plugins.packaging import read_package, source_of


def _load(backend: ModelBackend, folder: Path) -> tuple[str, str]:
    try:
        manifest = read_package(folder)
        source = source_of(manifest, folder)
        # Not through `CheckedModel.load`, because the errors of the backend itself are tested.
        model = CheckedModel(backend.load(source), source.signature)
        model.verify(ManifestSample.of(manifest))
        model.close()
    except TreadleError as error:
        return type(error).__name__, error.message
    except Exception as error:
        return "unclean", f"{type(error).__name__}: {error}"
    return "ok", ""


def _main(module: str, name: str, *folders: str) -> None:
    backend = getattr(importlib.import_module(module), name)()
    for folder in folders:
        outcome, message = _load(backend, Path(folder))
        sys.stdout.write(json.dumps({"folder": folder, "outcome": outcome, "message": message}) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    _main(*sys.argv[1:])
