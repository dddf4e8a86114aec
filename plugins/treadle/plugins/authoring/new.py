"""Writes a new plugin project, with a working backend and passing tests."""

import re
from importlib.resources import files
from pathlib import Path

from treadle.core.errors import AlreadyExists, InvalidInput
from treadle.plugins.hookspecs import GROUP

_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
# Template file to project file; MODULE stands for the name of the module.
_FILES = {
    "pyproject.toml.txt": "pyproject.toml",
    "README.md.txt": "README.md",
    "module.py.txt": "MODULE.py",
    "test_contract.py.txt": "tests/test_contract.py",
}


def new_plugin(name: str, folder: Path) -> list[Path]:
    """Writes the project of plugin `name` to `folder`, which must be empty or absent. Returns the files.

    Raises InvalidInput for a name that is not lower-case words joined by '-', AlreadyExists for a folder in use.
    """
    if not _NAME.fullmatch(name):
        raise InvalidInput(f"{name!r} is no plugin name: lower-case words joined by '-', such as 'nearest-centroid'")
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise AlreadyExists(f"{folder} exists and is not empty")
    words = {
        "@NAME@": name,
        "@DISTRIBUTION@": f"{GROUP}-{name}",
        "@MODULE@": f"{GROUP}_{name.replace('-', '_')}",
        "@CLASS@": "".join(word.capitalize() for word in name.split("-")),
    }
    written = []
    for source, target in _FILES.items():
        text = (files("treadle.plugins") / "template" / source).read_text(encoding="utf-8")
        for mark, word in words.items():
            text = text.replace(mark, word)
        path = folder / target.replace("MODULE", words["@MODULE@"])
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        written.append(path)
    return written
