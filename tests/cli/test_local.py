"""Commands that need no mesh: doctor, plugins, train without push; files and cells that people write."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import click
import numpy as np
import pytest

from treadle.cli.deployfile import parse_fallback, parse_traffic, read_plan
from treadle.cli.ui.row_input import columns_from_options, read_rows
from treadle.client import Fallback
from treadle.core.errors import InvalidInput, NotFound

from ..conftest import BasePort
from .conftest import Treadle


def findings(treadle: Treadle, *arguments: object) -> tuple[int, dict[str, dict[str, str]]]:
    done = treadle("doctor", "--json", *arguments)
    return done.exit_code, {each["what"]: each for each in json.loads(done.stdout)["findings"]}


def test_doctor_finds_a_fit_machine(treadle: Treadle, tmp_path: Path, base_port: BasePort) -> None:
    status, found = findings(treadle, "--home", tmp_path, "--base-port", base_port())
    assert status == 0
    assert found["Python"]["level"] == found["home"]["level"] == found["treadle"]["level"] == "ok"
    assert found["plugin sklearn"]["level"] == "ok"
    assert found["mesh"]["do"] == "treadle up"


def test_doctor_says_what_to_do_about_a_busy_port(treadle: Treadle, tmp_path: Path, base_port: BasePort) -> None:
    base = base_port()
    with socket.create_server(("127.0.0.1", base + 1)):
        status, found = findings(treadle, "--home", tmp_path, "--base-port", base)
    assert status == 1
    assert "features" in found["ports"]["found"]
    assert "--base-port" in found["ports"]["do"]


def test_doctor_says_what_to_do_about_a_home_it_cannot_write(treadle: Treadle, base_port: BasePort) -> None:
    # Nobody makes files in /proc, not even root.
    status, found = findings(treadle, "--home", "/proc/treadle", "--base-port", base_port())
    assert status == 1
    assert "--home" in found["home"]["do"]


def test_doctor_for_people(treadle: Treadle, tmp_path: Path, base_port: BasePort) -> None:
    shown = treadle("doctor", "--home", tmp_path, "--base-port", base_port()).stdout
    assert "CPython" in shown
    assert "treadle up" in shown


def test_plugins_list(treadle: Treadle) -> None:
    found = {each["name"]: each for each in json.loads(treadle("plugins", "list", "--json").stdout)}
    assert found["sklearn"]["state"] == "ok"
    assert found["sklearn"]["provides"] == ["backend sklearn"]
    assert "backend sklearn" in treadle("plugins", "list").stdout


@pytest.mark.slow
def test_plugins_check(treadle: Treadle) -> None:
    done = treadle("plugins", "check", "python", "--json")
    found = json.loads(done.stdout)
    assert done.exit_code == 0
    assert found["passed"]
    assert treadle("plugins", "check", "nonsense").exit_code == 1


def test_plugins_new(treadle: Treadle, tmp_path: Path) -> None:
    done = treadle("plugins", "new", "nearest-thing", "--folder", tmp_path / "mine", "--json")
    written = json.loads(done.stdout)["files"]
    assert str(tmp_path / "mine" / "pyproject.toml") in written
    again = treadle("plugins", "new", "nearest-thing", "--folder", tmp_path / "mine", "--json")
    assert json.loads(again.stdout)["error"]["code"] == "ALREADY_EXISTS"
    assert treadle("plugins", "new", "Bad Name", "--folder", tmp_path / "other").exit_code == 1


TRAINING = """
import numpy as np
from sklearn.linear_model import LogisticRegression
from treadle.jobs.train import Trained

def train(table, *, strength=1.0):
    rows = np.column_stack([table["a"].to_numpy(), table["b"].to_numpy()])
    model = LogisticRegression(C=strength).fit(rows, table["late"].to_numpy())
    return Trained(model, {"features": rows[:5]}, columns={"features": ["a", "b"]}, metrics={"roc_auc": 0.8})

def wrong(table):
    return 5
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of user code and a training table."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    name = f"training_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(TRAINING)
    random = np.random.default_rng(0)
    a, b = random.normal(size=(2, 50))
    pq.write_table(pa.table({"a": a, "b": b, "late": a + b > 0}), tmp_path / "train.parquet")
    monkeypatch.chdir(tmp_path)
    return Path(name)


def test_train_keeps_lineage(treadle: Treadle, project: Path) -> None:
    for command in (("init", "-q"), ("add", "."), ("-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "x")):
        subprocess.run(["git", *command], check=True)
    arguments = ("train", f"{project}:train", "--data", "train.parquet", "--model", "delay", "--no-push", "--json")
    done = treadle(*arguments, "--folder", "one", "-p", "strength=0.5")
    assert done.exit_code == 0, done.output
    manifest = json.loads(done.stdout)
    assert manifest["parameters"]["strength"] == "0.5"
    assert len(manifest["lineage"]["data_digest"]) == 64
    assert len(manifest["lineage"]["code_revision"].partition("+")[0]) == 40
    assert manifest["lineage"]["trained_by"] == f"{project}:train"
    assert "scikit-learn" in manifest["lineage"]["environment"]
    assert manifest["signature"]["inputs"][0]["columns"] == ["a", "b"]


@pytest.mark.parametrize(
    ("function", "more", "code"),
    [
        (":train", (), "INVALID_ARGUMENT"),
        ("PROJECT:nobody", (), "NOT_FOUND"),
        ("no_such_module:train", (), "NOT_FOUND"),
        ("PROJECT:wrong", (), "INVALID_ARGUMENT"),
        ("PROJECT:train", ("-p", "nonsense=1"), "INVALID_ARGUMENT"),
        ("PROJECT:train", ("--data", "none.parquet"), "NOT_FOUND"),
    ],
)
def test_train_refuses_invalid_arguments(
    treadle: Treadle, project: Path, function: str, more: tuple[str, ...], code: str
) -> None:
    name = function.replace("PROJECT", str(project))
    arguments = ("train", name, "--data", "train.parquet", "--model", "m", "--folder", "out", "--no-push", "--json")
    done = treadle(*arguments, *more)
    assert done.exit_code == 1
    assert json.loads(done.stdout)["error"]["code"] == code


def test_columns_from_options() -> None:
    found = columns_from_options(
        ["tail=N1", "tail=N2", "n=1", "n=2.5", "d:FP32=3", "v=[1, 2]", "t:TIMESTAMP=2013-10-01T05:00Z"]
    )
    assert found["tail"].values.tolist() == ["N1", "N2"]
    assert found["n"].dtype == "FP64"
    assert found["d"].dtype == "FP32"
    assert found["v"].values.shape == (1, 2)
    assert found["t"].dtype == "TIMESTAMP"
    assert columns_from_options(["id:STRING=7"])["id"].values.tolist() == ["7"]


@pytest.mark.parametrize("cell", ["x:NONSENSE=1", "x:FP32=abc", "x:TIMESTAMP=noon"])
def test_malformed_options_are_refused(cell: str) -> None:
    with pytest.raises(InvalidInput, match="x"):
        columns_from_options([cell])
    with pytest.raises(click.UsageError):
        columns_from_options(["=1"])


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"nonsense": {}}', '{"entities": []}', '{"entities": {"a": 1}}'])
def test_malformed_row_files_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "rows.json").write_text(text)
    with pytest.raises(InvalidInput, match=r"rows\.json"):
        read_rows(str(tmp_path / "rows.json"))


PLAN = """
name = "flights"
sticky_entity = "tail_number"
shadows = ["delay/3"]
[traffic]
"delay/1" = 90
"delay@champion" = 10
[[fallback]]
name = "rule"
version = "rule/1"
timeout_seconds = 0.5
[[fallback]]
name = "guess"
constant = {probability = [0.8, 0.2]}
"""


def test_deployment_file(tmp_path: Path) -> None:
    path = tmp_path / "flights.toml"
    path.write_text(PLAN)
    plan = read_plan(path)
    assert plan.traffic == {"delay/1": 90, "delay@champion": 10}
    assert plan.fallbacks[0] == Fallback("rule", version="rule/1", timeout_seconds=0.5)
    assert plan.fallbacks[1].constant == {"probability": [[0.8, 0.2]]}
    assert plan.with_flags(sticky_entity=None, shadows=()) == plan
    assert plan.with_flags(traffic={"delay/2": 100.0}).traffic == {"delay/2": 100.0}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("traffic = 1", '"traffic" has the wrong type'),
        ("[traffic]\nx = 1", '"name" is missing'),
        ('name = "f"\nstiky_entity = "x"', "did you mean 'sticky_entity'"),
        ('name = "f"\n[traffic]\n"a/1" = "x"', "must be a number"),
        ('name = "f"\n[[fallback]]\nname = "x"', 'either a "version" or a "constant"'),
        ("name = ", "flights.toml"),
    ],
)
def test_an_error_in_a_deployment_file_names_its_key(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "flights.toml"
    path.write_text(text)
    with pytest.raises(InvalidInput) as caught:
        read_plan(path)
    assert says in caught.value.message
    assert str(path) in caught.value.message
    with pytest.raises(NotFound):
        read_plan(tmp_path / "none.toml")


def test_flags_of_deploy() -> None:
    assert parse_traffic("delay/2=12.5") == ("delay/2", 12.5)
    assert parse_fallback('guess={"p": 0.2}') == Fallback("guess", constant={"p": [0.2]})
    for text in ("delay/2", "delay/2=x"):
        with pytest.raises(InvalidInput):
            parse_traffic(text)
    for text in ("rule", "=x", "rule=", "rule={x"):
        with pytest.raises(InvalidInput):
            parse_fallback(text)


@pytest.mark.parametrize(
    ("variable", "meant"),
    [("TREADLE_LOG_LEVLE", "TREADLE_LOG_LEVEL"), ("TREADLE_REGISTRY_ARTIFACT", "TREADLE_REGISTRY_ARTIFACTS")],
)
def test_a_misspelt_variable_is_an_error_that_says_what_was_meant(variable, meant, tmp_path):
    command = [sys.executable, "-m", "treadle.cli.main", "serve", "registry"]
    environ = {**os.environ, "TREADLE_HOME": str(tmp_path), variable: "x"}
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert variable in done.stderr
    assert meant in done.stderr
