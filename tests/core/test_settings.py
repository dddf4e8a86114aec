"""Settings come from the environment, typed and within bounds; one error names everything that is wrong."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import pytest

from treadle.core.errors import InvalidInput
from treadle.core.settings import (
    HOST_PORT,
    HTTP_URL,
    LISTEN_ADDRESS,
    Rule,
    Settings,
    bounds,
    one_of,
    rules,
    settings_from,
)


@dataclass(frozen=True)
class ShopSettings(Settings):
    """Those of a service that does not exist."""

    max_rows: Annotated[int, bounds(1, 1_000)] = 10
    ratio: Annotated[float, bounds(0, 1)] = 0.5
    strict: bool = False
    folder: Path = Path("x")
    url: str | None = None
    listen: Annotated[str | None, HOST_PORT] = None


def test_defaults_without_an_environment() -> None:
    assert settings_from(ShopSettings, {}, "SHOP") == ShopSettings()


def test_each_type_is_parsed() -> None:
    environ = {
        "TREADLE_SHOP_MAX_ROWS": "7",
        "TREADLE_SHOP_RATIO": "0.25",
        "TREADLE_SHOP_STRICT": "yes",
        "TREADLE_SHOP_FOLDER": "/data",
        "TREADLE_SHOP_URL": "",
        "TREADLE_SHOP_LISTEN": "",
        "TREADLE_HOME": "ignored here",
        "PATH": "/bin",
    }
    assert settings_from(ShopSettings, environ, "SHOP") == ShopSettings(7, 0.25, True, Path("/data"), None)


@pytest.mark.parametrize(
    ("variable", "value", "wanted"),
    [
        ("MAX_ROWS", "many", "a whole number, 1 to 1,000"),
        ("MAX_ROWS", "0", "a whole number, 1 to 1,000"),
        ("MAX_ROWS", "1001", "a whole number, 1 to 1,000"),
        ("MAX_ROWS", "", "a whole number, 1 to 1,000"),
        ("RATIO", "x", "a number, 0 to 1"),
        ("RATIO", "nan", "a number, 0 to 1"),
        ("RATIO", "inf", "a number, 0 to 1"),
        ("STRICT", "maybe", "true or false"),
        ("LISTEN", "somewhere", "host:port, port 0 to 65,535"),
    ],
)
def test_a_wrong_value_names_the_variable_and_what_is_allowed(variable: str, value: str, wanted: str) -> None:
    with pytest.raises(InvalidInput, match=f"TREADLE_SHOP_{variable} must be {wanted}; not '{value}'"):
        settings_from(ShopSettings, {f"TREADLE_SHOP_{variable}": value}, "SHOP")


def test_a_misspelt_variable_is_an_error_with_a_suggestion() -> None:
    with pytest.raises(InvalidInput, match="did you mean 'TREADLE_SHOP_MAX_ROWS'"):
        settings_from(ShopSettings, {"TREADLE_SHOP_MAX_ROW": "1"}, "SHOP")


def test_one_error_lists_everything_that_is_wrong() -> None:
    environ = {"TREADLE_SHOP_MAX_ROWS": "0", "TREADLE_SHOP_RATIO": "many", "TREADLE_SHOP_RATO": "1"}
    with pytest.raises(InvalidInput, match="unset them to get the defaults") as caught:
        settings_from(ShopSettings, environ, "SHOP")
    assert {each.field for each in caught.value.violations} == environ.keys()
    assert all(f"\n  {variable} " in caught.value.message for variable in environ)


def test_without_a_prefix_other_variables_are_somebody_elses() -> None:
    assert settings_from(ShopSettings, {"TREADLE_OTHER": "x", "TREADLE_MAX_ROWS": "3"}, "").max_rows == 3


def test_bounds_hold_for_settings_that_a_program_makes() -> None:
    with pytest.raises(InvalidInput, match=r"ShopSettings\.ratio must be a number, 0 to 1; not 2\.0"):
        ShopSettings(ratio=2.0)
    with pytest.raises(InvalidInput, match=r"ShopSettings\.max_rows"):
        replace(ShopSettings(), max_rows=0)


def test_rules_can_be_shown() -> None:
    assert rules(ShopSettings)["max_rows"] == "1 to 1,000"
    assert rules(ShopSettings)["strict"] == ""


@pytest.mark.parametrize(
    ("rule", "allowed", "refused"),
    [
        (bounds(0.5, 2), (0.5, 1, 2.0), (0.49, 2.01, float("nan"))),
        (one_of("debug", "info"), ("info", "INFO"), ("", "verbose")),
        (HOST_PORT, ("h:0", "0.0.0.0:65535", "[::1]:80"), (":80", "h:65536", "h:", "h:x", "h:-1", "unix:/x", "h")),
        (LISTEN_ADDRESS, ("h:80", "unix:/tmp/x.sock"), ("h", "h:99999")),
        (HTTP_URL, ("http://h:1", "https://h/x"), ("h:1", "grpc://h:1", "http://", "http:///x")),
    ],
)
def test_rules(rule: Rule, allowed: tuple[object, ...], refused: tuple[object, ...]) -> None:
    assert [value for value in allowed if not rule.allows(value)] == []
    assert [value for value in refused if rule.allows(value)] == []
