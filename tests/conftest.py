"""For all tests: ports of their own, and a run that requires services does not accept that one is absent."""

import os
from collections.abc import Callable, Generator

import pytest

from treadle.cli.ports import free_base_port

BasePort = Callable[[], int]


@pytest.fixture(scope="session")
def base_port() -> BasePort:
    """Finds free ports for a mesh: apart from other test runs', and below those that outgoing connections get."""
    return lambda: free_base_port(10_000 + os.getpid() % 250 * 80)


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
