"""Every command that the README shows is run here, with nothing changed but where the mesh is."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
# Run by CI as they stand, or what this very test does.
ELSEWHERE = {
    "make demo": "tests/e2e/test_demo.py",
    "make test": "this suite",
    "treadle up": "the live mesh",
    "treadle up --colocate": "the live mesh, together",
}


def shell_commands():
    """Each command of the README's shell blocks, without comments."""
    for language, text in BLOCKS:
        if language == "sh":
            joined = re.sub(r"\\\n\s*", "", text)
            yield from (line.split("   #")[0].strip() for line in joined.splitlines() if line.strip())


@pytest.fixture(scope="module")
def told(live, tmp_path_factory):
    """Runs a command as someone who follows the README would; the folder it happens in."""
    folder = tmp_path_factory.mktemp("reader")
    home = Path(sys.executable).parent
    environ = {**os.environ, "PATH": f"{home}:{os.environ['PATH']}", "TREADLE_HOME": str(live.home), "COLUMNS": "120"}

    def run(command):
        command = command.replace("127.0.0.1:7710", live.mesh.rest_address)
        return subprocess.run(
            ["bash", "-c", command], cwd=folder, env=environ, capture_output=True, text=True, timeout=250, check=False
        )

    run.folder = folder
    run.environ = environ
    return run


def test_the_first_prediction_works_as_printed(told, live):
    code = next(text for language, text in BLOCKS if language == "python")
    code = code.replace("Client()", f"Client({live.address('gateway')!r})")
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=told.folder, env=told.environ, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    printed = next(text for language, text in BLOCKS if language == "text")
    assert shape_of(done.stdout) == shape_of(printed)


def shape_of(text):
    """Printed text with its numbers' digits left out: solvers differ in the last ones from machine to machine."""
    return re.sub(r"\d+(\.\d+)?(e-?\+?\d+)?", "N", text).split()


@pytest.mark.parametrize("command", [c for c in shell_commands() if c not in ELSEWHERE])
def test_the_command_works(told, command):
    done = told(command)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.strip(), "it says something"


def test_the_curl_answers_with_a_prediction(told):
    import json

    (command,) = [c for c in shell_commands() if c.startswith("curl")]
    answer = json.loads(told(command).stdout)
    assert answer["model"] == {"name": "tumour", "version": 1}
    assert len(answer["outputs"]["probability"][0]) == 2
