"""Settings come from the environment, typed; what is wrong is named."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from treadle.core.errors import InvalidInput
from treadle.core.settings import settings_from


@dataclass(frozen=True)
class Settings:
    max_rows: int = 10
    ratio: float = 0.5
    strict: bool = False
    folder: Path = Path("x")
    url: str | None = None


def test_defaults_without_an_environment():
    assert settings_from(Settings, {}, "FEATURES") == Settings()


def test_each_type_is_parsed():
    environ = {
        "TREADLE_FEATURES_MAX_ROWS": "7",
        "TREADLE_FEATURES_RATIO": "0.25",
        "TREADLE_FEATURES_STRICT": "yes",
        "TREADLE_FEATURES_FOLDER": "/data",
        "TREADLE_FEATURES_URL": "",
        "TREADLE_HOME": "ignored here",
        "PATH": "/bin",
    }
    assert settings_from(Settings, environ, "FEATURES") == Settings(7, 0.25, True, Path("/data"), None)


@pytest.mark.parametrize(
    ("variable", "value", "wanted"),
    [("MAX_ROWS", "many", "a whole number"), ("RATIO", "x", "a number"), ("STRICT", "maybe", "true or false")],
)
def test_a_bad_value_names_the_variable_and_the_type(variable, value, wanted):
    with pytest.raises(InvalidInput, match=f"TREADLE_FEATURES_{variable} must be {wanted}, not '{value}'"):
        settings_from(Settings, {f"TREADLE_FEATURES_{variable}": value}, "FEATURES")


def test_a_misspelt_variable_is_an_error_with_a_suggestion():
    with pytest.raises(InvalidInput, match="did you mean 'TREADLE_FEATURES_MAX_ROWS'"):
        settings_from(Settings, {"TREADLE_FEATURES_MAX_ROW": "1"}, "FEATURES")
