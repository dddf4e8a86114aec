"""Values of a wrong type in a deployment file."""

from pathlib import Path

import pytest

from treadle.cli.deployfile import read_plan
from treadle.core.errors import InvalidInput

STEP = '[[fallback]]\nname = "rule"\nversion = "rule/1"\n'


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("timeout_seconds = true", '"timeout_seconds" has the wrong type'),
        ("feature_timeout_seconds = false", '"feature_timeout_seconds" has the wrong type'),
        ("strict_features = 1", '"strict_features" has the wrong type'),
        (f"{STEP}timeout_seconds = true", 'fallback 1: "timeout_seconds" has the wrong type'),
        ('[traffic]\n"delay/1" = true', 'traffic of "delay/1" must be a number'),
        ("shadows = [1]", '"shadows" must be a list of texts'),
        ('shadows = ["delay/1", ["delay/2"]]', '"shadows" must be a list of texts'),
    ],
)
def test_a_value_of_a_wrong_type_names_its_key(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "flights.toml"
    path.write_text(f'name = "flights"\n{text}')
    with pytest.raises(InvalidInput) as caught:
        read_plan(path)
    assert says in caught.value.message
    assert str(path) in caught.value.message


def test_booleans_and_whole_numbers_are_taken_where_they_belong(tmp_path: Path) -> None:
    path = tmp_path / "flights.toml"
    path.write_text('name = "flights"\nstrict_features = true\ntimeout_seconds = 2\nshadows = ["delay/3"]')
    plan = read_plan(path)
    assert (plan.strict_features, plan.timeout_seconds, plan.shadows) == (True, 2, ("delay/3",))
