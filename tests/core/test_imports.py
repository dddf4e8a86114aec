"""Users' modules are found by their folder."""

import sys

import pytest

from treadle.core.errors import FailedPrecondition
from treadle.core.imports import add_path


def test_a_folder_goes_in_front_once(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", ["/elsewhere"])
    assert add_path(tmp_path / "." / "..") == tmp_path.parent
    add_path(tmp_path.parent)
    assert sys.path == [str(tmp_path.parent), "/elsewhere"]


def test_what_is_no_folder_is_named(tmp_path):
    with pytest.raises(FailedPrecondition, match=r"no folder .*nowhere"):
        add_path(tmp_path / "nowhere")
