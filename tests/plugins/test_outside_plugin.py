"""A plugin from outside: built as a wheel, installed in a clean environment beside Treadle's own wheel."""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from treadle.plugins.authoring.new import new_plugin

HOUSE = Path(__file__).parents[2]
PROJECT = HOUSE / "tests" / "plugin-project"
pytestmark = pytest.mark.slow

PROGRAM = """
import sys
from pathlib import Path
import treadle.plugins
from treadle.plugins.authoring.check import check_plugin
from treadle.plugins.manager import Plugins

prefix = Path(sys.prefix)
assert Path(treadle.plugins.__file__).is_relative_to(prefix), treadle.plugins.__file__
info = {info.name: info for info in Plugins.load().info()}["centroid"]
assert (info.distribution, info.version, info.state) == ("treadle-centroid", "0.1.0", "ok"), info
backend = Plugins.load().backend("centroid")
assert Path(sys.modules[type(backend).__module__].__file__).is_relative_to(prefix)
results = check_plugin("centroid")
assert len(results) > 15, results
assert {result.outcome for result in results} == {"passed"}, results
"""


def run(*command: str | Path, cwd: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "PYTEST"))}
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, f"{command}:\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment with both wheels; what they depend on is borrowed from the one running, so that nothing
    is downloaded."""
    folder = tmp_path_factory.mktemp("outside")
    for project in (HOUSE, PROJECT):
        run(
            sys.executable,
            "-m",
            "build",
            "--wheel",
            "--no-isolation",
            "--outdir",
            folder / "wheels",
            project,
            cwd=folder,
        )
    run(sys.executable, "-m", "venv", "--without-pip", folder / "venv", cwd=folder)
    python = folder / "venv" / "bin" / "python"
    wheels = sorted((folder / "wheels").glob("*.whl"))
    assert len(wheels) == 2
    run(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", *wheels, cwd=folder)
    (site,) = (folder / "venv").glob("lib/python*/site-packages")
    (site / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


def test_its_own_tests_pass(environment: Path, tmp_path: Path) -> None:
    shutil.copytree(PROJECT, tmp_path / "project", ignore=shutil.ignore_patterns("treadle_centroid.py", "__pycache__"))
    run(environment, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:asyncio", cwd=tmp_path / "project")


def test_treadle_finds_and_checks_it(environment: Path, tmp_path: Path) -> None:
    run(environment, "-c", PROGRAM, cwd=tmp_path)


def test_it_is_what_new_writes(tmp_path: Path) -> None:
    for path in new_plugin("centroid", tmp_path / "new"):
        committed = PROJECT / path.relative_to(tmp_path / "new")
        assert path.read_text() == committed.read_text(), f"{committed} is not what the template gives"
