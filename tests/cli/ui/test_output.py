"""An error says its fields once: as lines for people, as a list for machines."""

import json

import pytest

from treadle.cli.ui.output import Output
from treadle.mesh.errors import CommandError

ERROR = CommandError(
    "name is empty",
    "give one",
    "INVALID_ARGUMENT",
    [{"field": "name", "description": "is empty"}, {"field": "owner", "description": "is too long"}],
)


@pytest.mark.parametrize("as_json", [False, True])
def test_an_error_with_violations(capsys: pytest.CaptureFixture[str], as_json: bool) -> None:
    Output(as_json).fail(ERROR)
    written = capsys.readouterr()
    assert written.err == "error: name is empty\n  owner: is too long\n  → give one\n"
    if not as_json:
        assert written.out == ""
        return
    error = json.loads(written.out)["error"]
    assert list(error) == ["code", "message", "hint", "violations"]
    assert [each["field"] for each in error["violations"]] == ["name", "owner"]
