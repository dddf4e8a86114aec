"""For all tests: ports, a small model, what a process imports; and no skipped test where services are required."""

import importlib.util
import os
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
from treadle.v1 import types_pb2

BasePort = Callable[[], int]


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
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """With TREADLE_REQUIRE_SERVICES=1, as CI sets it, a skipped integration test has failed."""
    report = yield
    if report.skipped and item.get_closest_marker("services") and os.environ.get("TREADLE_REQUIRE_SERVICES") == "1":
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} was skipped, and TREADLE_REQUIRE_SERVICES=1 forbids that: {report.longrepr}"
    return report
