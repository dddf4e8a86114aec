"""Servers are ended with all that they started, and stand still when they are told to."""

import sys
import time

import psutil
import pytest
from benchmarks.processes import ServerProcess, cpu_seconds, freeze, memory_mib, tree
from benchmarks.servers import outer_environment

# A parent, with a child in a session of its own: no signal to the parent's group reaches it.
STUBBORN = """
import subprocess, sys, time
while time.process_time() < 0.1:  # what is counted comes in steps of 0.01 s
    pass
child = "import time; print('up', flush=True)\\nwhile True: time.sleep(0.01)"
process = subprocess.Popen([sys.executable, "-c", child], start_new_session=True)
process.wait()
"""


@pytest.fixture
async def started(tmp_path):
    process = ServerProcess([sys.executable, "-c", STUBBORN], outer_environment(), tmp_path / "log", tmp_path)
    while "up" not in process.log.read_text():
        assert not process.ended, process.last_words()
        time.sleep(0.01)  # noqa: ASYNC251  # another process: no event to wait for
    yield process
    await process.end()


async def test_the_tree_holds_what_it_started(started):
    assert len(tree([started.pid])) == 2
    assert cpu_seconds([started.pid]) > 0
    assert memory_mib([started.pid]) > 1


async def test_nothing_is_left_when_it_has_ended(started):
    everyone = tree([started.pid])
    await started.end()
    assert not [each for each in everyone if each.is_running() and each.status() != psutil.STATUS_ZOMBIE]


async def test_what_is_frozen_stands_still_and_can_be_ended(started):
    freeze([started.pid], frozen=True)
    while {each.status() for each in tree([started.pid])} != {psutil.STATUS_STOPPED}:
        time.sleep(0.01)  # noqa: ASYNC251  # the kernel tells nobody when it has stopped one
    await started.end()
    assert started.ended


async def test_its_last_words_are_kept(tmp_path):
    process = ServerProcess(
        [sys.executable, "-c", "print('no such model')"], outer_environment(), tmp_path / "log", tmp_path
    )
    await process.end()
    assert process.last_words() in {"no such model", "it wrote nothing"}


def test_peers_inherit_no_setting_of_treadle(monkeypatch):
    monkeypatch.setenv("TREADLE_HOME", "/somewhere")
    monkeypatch.setenv("PYTHONPATH", "/elsewhere")
    inherited = outer_environment()
    assert not [name for name in inherited if name.startswith(("TREADLE_", "PYTHON"))]
    assert inherited["OMP_NUM_THREADS"] == "1"
