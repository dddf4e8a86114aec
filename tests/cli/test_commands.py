"""Commands against a whole mesh: each in its form for people and its form for machines."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result

from .conftest import Treadle

AsJson = Callable[..., Any]

pytestmark = pytest.mark.slow

FEATURES = """
from datetime import timedelta
from treadle.features import Entity, FeatureService, FeatureView, Field, Source

origin = Entity("origin", "STRING")
weather = FeatureView(
    "cli_weather", [origin], Source("weather.parquet", "known_at"),
    [Field("wind", "FP64", unit="knots")], freshness=timedelta(hours=2),
)
service = FeatureService("cli_flights", [weather], context=[Field("distance", "FP64", unit="km")])
"""


TRAINING = """
import numpy as np
from sklearn.linear_model import LogisticRegression
from treadle.jobs.train import Trained

def train(table, *, strength):
    rows = np.stack(table["features"].to_numpy()).astype(np.float32)
    model = LogisticRegression(C=strength).fit(rows, table["late"].to_numpy())
    return Trained(model, {"features": rows[:5]})
"""


@pytest.fixture(scope="session")
def pushed() -> list[int]:
    """Grows by one when the model has been pushed: once a session."""
    return []


@pytest.fixture
def delay(as_json: AsJson, package: Path, pushed: list[int]) -> str:
    """A registered version."""
    if not pushed:
        pushed.append(as_json("model", "push", "delay", package)["ref"]["version"])
    return f"delay/{pushed[0]}"


@pytest.fixture
def deployed(as_json: AsJson, delay: str) -> str:
    """A deployment of it, with a constant to fall back on."""
    fallback = 'guess={"probability": [0.5, 0.5]}'
    as_json("deploy", "flights", "--traffic", f"{delay}=100", "--fallback", fallback, "--reason", "for tests")
    return "flights"


def test_status(as_json: AsJson, on_mesh: Treadle) -> None:
    found = as_json("status")
    assert found["serving"]
    assert {each["service"] for each in found["services"]} >= {"gateway", "features", "registry"}
    assert all(each["pid"] for each in found["services"])
    assert "SERVING" in on_mesh("status").stdout


def test_push_again_is_the_same_version(as_json: AsJson, on_mesh: Treadle, delay: str, package: Path) -> None:
    assert as_json("model", "push", "delay", package)["ref"] == {"model": "delay", "version": int(delay[-1])}
    assert delay in on_mesh("model", "push", "delay", package).stdout


def test_model_list_show_card_alias(as_json: AsJson, on_mesh: Treadle, delay: str, tmp_path: Path) -> None:
    version = int(delay.partition("/")[2])
    assert as_json("model", "alias", "delay", "champion", version)["aliases"] == {"champion": version}
    assert "champion" in on_mesh("model", "alias", "delay", "champion", version).stdout
    assert "delay" in [each["name"] for each in as_json("model", "list")]
    assert as_json("model", "list", "delay")[0]["aliases"] == ["champion"]
    assert "champion" in on_mesh("model", "list").stdout
    assert "sklearn" in on_mesh("model", "list", "delay").stdout
    assert as_json("model", "show", "delay@champion")["manifest"]["backend"] == "sklearn"
    assert "roc_auc" in on_mesh("model", "show", delay).stdout
    card = as_json("model", "card", delay)["markdown"]
    assert card.startswith(f"# {delay}\n")
    assert "Positive first column." in card
    assert on_mesh("model", "card", delay, "-o", tmp_path / "card.md").exit_code == 0
    assert (tmp_path / "card.md").read_text() == card


def test_predict_by_tensors(as_json: AsJson, on_mesh: Treadle, deployed: str) -> None:
    rows = ("-t", "features:FP32=[5, 0, 0]", "-t", "features:FP32=[-5, 0, 0]")
    answer = as_json("predict", deployed, *rows)
    assert answer["served_by"] == "traffic"
    assert answer["outputs"]["probability"][0][1] > 0.5 > answer["outputs"]["probability"][1][1]
    assert len(answer["prediction_ids"]) == 2
    shown = on_mesh("predict", deployed, *rows).stdout
    assert answer["prediction_ids"][0][:4] in shown
    assert "treadle trace" in shown


def test_predict_from_a_file(as_json: AsJson, deployed: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text(json.dumps({"tensors": {"features:FP32": [[1.0, 2.0, 3.0]] * 3}}))
    assert len(as_json("predict", deployed, "--rows", path, "-o", "probability")["outputs"]["probability"]) == 3


def test_predict_refuses_invalid_rows(on_mesh: Treadle, deployed: str) -> None:
    done = on_mesh("predict", deployed, "-t", "features:FP32=[1, 2]", "--json")
    error = json.loads(done.stdout)["error"]
    assert done.exit_code == 1
    assert error["code"] == "INVALID_ARGUMENT"
    assert error["violations"]
    assert "error: " in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ("predict", "nobody", "-t", "x=1"),
        ("model", "show", "nobody/1"),
        ("model", "list", "nobody"),
        ("model", "card", "delay@nobody"),
        ("promote", "nobody", "delay/1"),
        ("rollback", "nobody"),
        ("features", "get", "nobody", "-e", "origin=JFK"),
        ("features", "materialize", "nobody"),
        ("features", "freshness", "nobody"),
        ("evaluate", "nobody/1", "none.parquet", "--label", "late"),
        ("trace", "abcdef0123456789"),
    ],
    ids=" ".join,
)
def test_unknown_names(on_mesh: Treadle, delay: str, arguments: tuple[str, ...]) -> None:
    done = on_mesh(*arguments, "--json")
    assert done.exit_code == 1
    assert json.loads(done.stdout)["error"]["code"] == "NOT_FOUND"


def test_deploy_from_a_file_promote_rollback_history(
    as_json: AsJson, on_mesh: Treadle, delay: str, deployed: str, tmp_path: Path
) -> None:
    path = tmp_path / "flights.toml"
    path.write_text(f'name = "{deployed}"\nsticky_entity = "tail_number"\n[traffic]\n"{delay}" = 100\n')
    made = as_json("deploy", path)
    assert made["sticky_entity"] == "tail_number"
    assert as_json("rollback", deployed)["sticky_entity"] == ""
    promoted = as_json("promote", deployed, delay, "--reason", "it is good")
    assert promoted["traffic"][0]["weight"] == 100
    assert "revision" in on_mesh("promote", deployed, delay).stdout
    assert "revision" in on_mesh("rollback", deployed).stdout
    assert "traffic" in on_mesh("deploy", path).stdout
    events = as_json("history", f"deployment:{deployed}")
    assert "it is good" in [each["reason"] for each in events]
    assert "deployment.apply" in on_mesh("history", "--limit", 5).stdout


@pytest.fixture
def features_file(tmp_path: Path) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    known = np.array(["2013-10-01T05:00", "2013-10-01T06:00"], "datetime64[us]")
    pq.write_table(
        pa.table({"origin": ["JFK", "EWR"], "known_at": known, "wind": [10.0, 12.0]}), tmp_path / "weather.parquet"
    )
    file = tmp_path / f"definitions_{tmp_path.name}.py"
    file.write_text(FEATURES)
    return file


def test_features(as_json: AsJson, on_mesh: Treadle, features_file: Path) -> None:
    dry = as_json("features", "apply", features_file, "--dry-run")
    assert {each["kind"] for each in dry["changes"]} <= {"CREATED", "UPDATED"}
    as_json("features", "apply", features_file)
    again = as_json("features", "apply", features_file)
    assert {each["kind"] for each in again["changes"]} == {"UNCHANGED"}
    assert "unchanged" in on_mesh("features", "apply", features_file).stdout
    filled = as_json("features", "materialize", "cli_weather")
    assert filled["views"]["cli_weather"]["rows"] == 2
    assert "cli_weather" in on_mesh("features", "materialize").stdout
    keys = ("-e", "origin=JFK", "-e", "origin=XXX", "-c", "distance=1.5", "-c", "distance=2.5")
    found = as_json("features", "get", "cli_flights", *keys)
    assert found["cli_weather__wind"]["values"][0] == 10.0
    assert found["cli_weather__wind"]["statuses"] == ["STALE", "MISSING"]
    assert "MISSING" in on_mesh("features", "get", "cli_flights", *keys).stdout
    stale = on_mesh("features", "freshness", "cli_weather", "--json")
    assert stale.exit_code == 1
    assert json.loads(stale.stdout)[0]["entities"] == 2
    assert "stale" in on_mesh("features", "freshness").stdout


@pytest.fixture
def judged(tmp_path: Path) -> Path:
    """Rows that the model is right about."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = np.random.default_rng(1).normal(size=(400, 3)).astype(np.float32)
    columns = {"features": list(rows), "late": rows[:, 0] > 0, "origin": ["JFK", "EWR"] * 200}
    pq.write_table(pa.table(columns), tmp_path / "judged.parquet")
    return tmp_path / "judged.parquet"


def test_evaluate_and_gate(as_json: AsJson, on_mesh: Treadle, delay: str, judged: Path, tmp_path: Path) -> None:
    gate = tmp_path / "gate.toml"
    gate.write_text('[[threshold]]\nmetric = "roc_auc"\nat_least = 0.7\n')
    arguments = ("evaluate", delay, judged, "--label", "late", "--slice", "origin", "--resamples", 20)
    report = as_json(*arguments, "--score-output", "probability", "--gate", gate)
    assert report["rows"] == 400
    assert report["gate"]["verdict"] == "PASS"
    gate.write_text('[[threshold]]\nmetric = "roc_auc"\nat_most = 0.1\n')
    page = tmp_path / "report.html"
    done = on_mesh(*arguments, "--score-output", "probability", "--gate", gate, "--report", page)
    assert done.exit_code == 1
    assert "fail" in done.stdout
    assert "FAIL</span></h1>" in page.read_text()
    assert "data:image/svg+xml;base64," in page.read_text()
    assert "Evaluation" in as_json("model", "card", delay)["markdown"]


def test_train_and_push(as_json: AsJson, judged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "training_of_cli.py").write_text(TRAINING)
    monkeypatch.chdir(tmp_path)
    made = as_json("train", "training_of_cli:train", "--data", judged, "--model", "trained", "-p", "strength=2")
    assert made["ref"]["version"] >= 1
    assert made["manifest"]["parameters"] == {"strength": "2"}
    assert len(made["manifest"]["lineage"]["data_digest"]) == 64


def test_trace(as_json: AsJson, on_mesh: Treadle, deployed: str) -> None:
    trace_id = as_json("predict", deployed, "-t", "features:FP32=[1, 2, 3]")["trace_id"]
    assert len(trace_id) == 32
    found = _eventually(lambda: on_mesh("trace", trace_id[:12], "--json"))
    assert {span["service"] for span in found["spans"]} >= {"gateway", "inference"}
    assert "gateway" in on_mesh("trace", trace_id).stdout
    slowest = as_json("trace", "--deployment", deployed, "--limit", 1000)  # others have filled the list without it
    assert trace_id in [each["trace_id"] for each in slowest]
    assert "Predict" in on_mesh("trace", "--deployment", deployed).stdout


def _eventually(run: Callable[[], Result]) -> Any:
    """Spans are sent once a second, by each hop and by each of the two that record them: asks until all are there."""
    for _ in range(2000):
        done = run()
        found = json.loads(done.stdout)
        shown = {(span["service"], span["name"].rpartition("/")[2]) for span in found.get("spans", ())}
        if done.exit_code == 0 and shown >= {("gateway", "Predict"), ("inference", "ModelInfer")}:
            return found
    pytest.fail("the trace did not arrive")
