"""Every command that the README shows is run here, with nothing changed but where the mesh is.

The commands build on one another: `make test` gives all tests of a file to one worker.
"""

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from .conftest import LiveMesh, default_alone

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300), default_alone]

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
# Run by CI as they stand, or what this very test does.
ELSEWHERE = {
    "make demo": "tests/e2e/test_demo.py",
    "make test": "this suite",
    "treadle up": "the live mesh",
    "treadle up --colocate": "the live mesh, colocated",
}


def shell_commands():
    """Each command of the README's shell blocks, without comments."""
    for language, text in BLOCKS:
        if language == "sh":
            joined = re.sub(r"\\\n\s*", "", text)
            yield from (line.split("   #")[0].strip() for line in joined.splitlines() if line.strip())


@dataclass(frozen=True)
class Reader:
    """Someone who follows the README in a folder of their own."""

    live: LiveMesh
    folder: Path

    def shell(self, command: str) -> subprocess.CompletedProcess[str]:
        """Runs a command as the README shows it, against the live mesh."""
        return self.run("bash", "-c", command.replace("127.0.0.1:7710", self.live.mesh.rest_address))

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Runs a program in the folder."""
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        environ = {**os.environ, "PATH": path, "TREADLE_HOME": str(self.live.home), "COLUMNS": "120"}
        return subprocess.run(
            command, cwd=self.folder, env=environ, capture_output=True, text=True, timeout=250, check=False
        )


@pytest.fixture(scope="module")
def reader(live: LiveMesh, tmp_path_factory: pytest.TempPathFactory) -> Reader:
    """The reader of this mesh."""
    return Reader(live, tmp_path_factory.mktemp("reader"))


def test_the_first_prediction_works_as_printed(reader, live):
    code = next(text for language, text in BLOCKS if language == "python")
    code = code.replace("Client()", f"Client({live.address('gateway')!r})")
    done = reader.run(sys.executable, "-c", code)
    assert done.returncode == 0, done.stderr
    printed = next(text for language, text in BLOCKS if language == "text")
    assert shape_of(done.stdout) == shape_of(printed)


def shape_of(text):
    """Printed text with its numbers' digits left out: solvers differ in the last ones from machine to machine."""
    return re.sub(r"\d+(\.\d+)?(e-?\+?\d+)?", "N", text).split()


@pytest.mark.parametrize("command", [c for c in shell_commands() if c not in ELSEWHERE])
def test_the_command_works(reader, command):
    done = reader.shell(command)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.strip(), "it says something"


def test_the_curl_answers_with_a_prediction(reader):
    import json

    (command,) = [c for c in shell_commands() if c.startswith("curl")]
    answer = json.loads(reader.shell(command).stdout)
    assert answer["model"] == {"name": "tumour", "version": 1}
    assert len(answer["outputs"]["probability"][0]) == 2
