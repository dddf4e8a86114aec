"""Shared by the tests of the plugin layer."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(autouse=True, scope="session")
def importable() -> Iterator[None]:
    """The folder `importable` stands for what a team has installed."""
    folder = str(Path(__file__).parent / "importable")
    sys.path.insert(0, folder)
    yield
    sys.path.remove(folder)
