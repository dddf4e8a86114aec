"""Runs the conformance kit on an installed plugin, in a child process, because a faulty plugin may crash."""

import importlib.util
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from xml.etree import ElementTree as ET

from treadle.core.errors import FailedPrecondition
from treadle.plugins.manager import Plugins

_BACKEND = """
class Test{index}(BackendContract):
    def backend(self):
        return Plugins.load().backend({name!r})
"""
_STORE = """
class Test{index}(OnlineStoreContract):
    def kind(self):
        return Plugins.load().online_store({name!r})
"""
_IMPORTS = """
from treadle.plugins.manager import Plugins
from treadle.plugins.testing import BackendContract, OnlineStoreContract
"""


@dataclass(frozen=True)
class CheckResult:
    """One test of the kit."""

    subject: str
    """ "backend sklearn", …"""
    test: str
    """The name of the test in words."""
    outcome: Literal["passed", "failed", "skipped"]
    message: str
    """Why the test did not pass; empty for a passed test."""
    seconds: float


def check_plugin(name: str, plugins: Plugins | None = None, *, timeout_seconds: float = 300) -> list[CheckResult]:
    """The results of the conformance kit for everything that plugin `name` provides.

    Backends are tested with their `example()`; metrics have none, and are reported as skipped. Raises NotFound for a
    plugin that is not installed or cannot be used, FailedPrecondition without pytest.
    """
    if importlib.util.find_spec("pytest") is None:
        raise FailedPrecondition("the conformance kit needs pytest; pip install 'treadle[testing]'")
    provided = (plugins or Plugins.load()).provided(name)
    classes = [_IMPORTS]
    subjects: list[str] = []
    results: list[CheckResult] = []
    for backend in provided.backends.values():
        if backend.example() is None:
            results.append(_skipped_result(f"backend {backend.name}", "it has no example(); its own tests use the kit"))
        else:
            classes.append(_BACKEND.format(index=len(subjects), name=backend.name))
            subjects.append(f"backend {backend.name}")
    for store in provided.online_stores:
        classes.append(_STORE.format(index=len(subjects), name=store))
        subjects.append(f"online store {store}")
    results += [_skipped_result(f"metric {metric}", "its own tests use MetricContract") for metric in provided.metrics]
    if subjects:
        results += _run("".join(classes), subjects, timeout_seconds)
    return results


def _skipped_result(subject: str, why: str) -> CheckResult:
    return CheckResult(subject, "conformance", "skipped", why, 0.0)


def _run(source: str, subjects: Sequence[str], timeout_seconds: float) -> list[CheckResult]:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "test_plugin.py").write_text(source)
        (folder / "pytest.ini").write_text("[pytest]\n")  # so that no configuration of a project around it applies
        report = folder / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}", scratch]
        try:
            done = subprocess.run(  # noqa: S603 - our own interpreter on our own file
                command, cwd=scratch, capture_output=True, text=True, timeout=timeout_seconds, check=False
            )
        except subprocess.TimeoutExpired:
            return [_failed_result(subjects, f"did not end within {timeout_seconds:g} s")]
        if not report.exists():
            return [
                _failed_result(
                    subjects, f"the process ended with {done.returncode}: {(done.stdout + done.stderr)[-1000:]}"
                )
            ]
        return list(_results(report, subjects))


def _failed_result(subjects: Sequence[str], message: str) -> CheckResult:
    return CheckResult(", ".join(subjects), "conformance", "failed", message, 0.0)


def _results(report: Path, subjects: Sequence[str]) -> Iterator[CheckResult]:
    for case in ET.parse(report).iter("testcase"):  # noqa: S314 - written by our own pytest
        bad = next((child for child in case if child.tag in {"failure", "error", "skipped"}), None)
        outcome: Literal["passed", "failed", "skipped"] = "passed"
        if bad is not None:
            outcome = "skipped" if bad.tag == "skipped" else "failed"
        yield CheckResult(
            subjects[int(case.get("classname", "").rpartition("Test")[2])],
            case.get("name", "").removeprefix("test_").replace("_", " "),
            outcome,
            "" if bad is None else bad.get("message", ""),
            float(case.get("time", "0")),
        )
