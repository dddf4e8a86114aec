"""For all tests: ports, a small model, the modules that a process imports; and no skipped test where CI forbids it."""

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from treadle.core.column import Column
from treadle.mesh.ports import free_base_port
from treadle.plugins.packaging import save_model
from treadle.rpc.codec.columns import encode
from treadle.rpc.hosts.choice import envoy_unavailable_reason
from treadle.v1 import types_pb2

BasePort = Callable[[], int]

needs_envoy = pytest.mark.skipif(bool(envoy_unavailable_reason()), reason=envoy_unavailable_reason() or "it can run")
"""For tests of the Envoy host."""


@dataclass(frozen=True)
class NoSettings:
    """Those of a service without any."""


def columns(**values: Any) -> list[types_pb2.Column]:
    """Columns by name."""
    return [encode(each if isinstance(each, Column) else Column.of(name, each)) for name, each in values.items()]


def modules_after(code: str) -> set[str]:
    """What a fresh process has imported once it has run this."""
    code += "\nimport sys\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split())


def module_of_file(path: Path) -> ModuleType:
    """A script that belongs to no package, as a module."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def program(name: str) -> str:
    """The path of a program outside Python; where it is absent the test is skipped."""
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"{name} is absent")
    return path


@pytest.fixture(scope="session")
def base_port() -> BasePort:
    """Finds free ports for a mesh: apart from other test runs', and below those that outgoing connections get."""
    return lambda: free_base_port(10_000 + os.getpid() % 250 * 80)


@pytest.fixture(scope="session")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model that takes tensors."""
    from sklearn.linear_model import LogisticRegression

    rows = np.random.default_rng(0).normal(size=(80, 3)).astype(np.float32)
    model = LogisticRegression().fit(rows, rows[:, 0] > 0)
    folder = tmp_path_factory.mktemp("package") / "model"
    save_model(model, folder, {"features": rows[:4]}, metrics={"roc_auc": 0.9}, description="Positive first column.")
    return folder


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A skipped test fails where skips are forbidden, unless it takes rights that CI may lack."""
    report = yield
    if not hasattr(report, "wasxfail") and item.get_closest_marker("privileged") is None:
        _fail_if_skipped(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """So does a module that is skipped whole."""
    report = yield
    _fail_if_skipped(report)
    return report


def _fail_if_skipped(report: pytest.TestReport | pytest.CollectReport) -> None:
    """TREADLE_REQUIRE_SERVICES=1, which .ci/run sets, says that every program that tests need is installed."""
    if report.skipped and os.environ.get("TREADLE_REQUIRE_SERVICES") == "1":
        report.outcome = "failed"
        report.longrepr = f"{report.nodeid} was skipped, and TREADLE_REQUIRE_SERVICES=1 forbids that: {report.longrepr}"
