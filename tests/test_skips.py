"""A skipped test shows nothing: where CI says that every program is installed, it fails."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
SKIPPED = {
    "by a mark": "@pytest.mark.skipif(True, reason='no program')\ndef test_it(): pass",
    "by a fixture": "@pytest.fixture\ndef program(): pytest.skip('no program')\ndef test_it(program): pass",
    "in the test": "def test_it(): pytest.skip('no program')",
    "with its module": "pytest.importorskip('no_such_program')\ndef test_it(): pass",
}


def run(folder: Path, text: str, required: str) -> str:
    """The last line of a run of these tests under this suite's conftest."""
    (folder / "test_some.py").write_text(f"import pytest\n{text}\n")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "conftest", "-W", "ignore", "--rootdir", ".", "test_some.py"]
    environ = {**os.environ, "PYTHONPATH": str(HERE), "TREADLE_REQUIRE_SERVICES": required}
    done = subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True, check=False)
    return re.sub(r" in .*s$", "", done.stdout.splitlines()[-1])


@pytest.mark.parametrize("text", SKIPPED.values(), ids=SKIPPED.keys())
def test_a_skipped_test_fails_where_skips_are_forbidden(tmp_path: Path, text: str) -> None:
    assert run(tmp_path, text, required="") == "1 skipped"
    assert run(tmp_path, text, required="1") in {"1 failed", "1 error"}


def test_a_test_that_takes_rights_may_be_skipped_and_one_that_is_known_to_fail_may_fail(tmp_path: Path) -> None:
    may_skip = "@pytest.mark.privileged\ndef test_it(): pytest.skip('no root')"
    may_fail = "@pytest.mark.xfail\ndef test_that(): raise ValueError"
    text = f"{may_skip}\n\n\n{may_fail}"
    assert run(tmp_path, text, required="1") == "1 skipped, 1 xfailed"
