"""The demo tells its whole story, and every check of it holds."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_check_of_the_story_holds():
    command = [sys.executable, "-m", "treadle.cli.main", "demo", "--exit"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-3000:]
    assert "checks held" in done.stdout
    assert "✗" not in done.stdout
