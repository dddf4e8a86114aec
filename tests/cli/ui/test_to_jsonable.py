"""The machine form of results."""

import json

import numpy as np

from treadle.cli.ui.to_jsonable import moment, plain
from treadle.client import Prediction
from treadle.core.column import Column
from treadle.rpc.codec.columns import encode
from treadle.v1 import evaluation_pb2, registry_pb2, types_pb2


def test_messages_keep_names_numbers_and_short_enums() -> None:
    deployment = registry_pb2.Deployment(
        name="flights",
        traffic=[registry_pb2.TrafficShare(ref=types_pb2.ModelRef(model="delay", version=2), weight=100)],
        feature_policy=registry_pb2.FEATURE_POLICY_STRICT,
        updated_micros=1_380_000_000_000_000,
    )
    found = plain(deployment)
    assert found["traffic"] == [{"ref": {"model": "delay", "version": 2}, "weight": 100.0}]
    assert found["feature_policy"] == "STRICT"
    assert found["updated_micros"] == 1_380_000_000_000_000
    assert found["fallbacks"] == []


def test_nan_becomes_null_so_that_json_is_json() -> None:
    estimate = evaluation_pb2.Estimate(metric="roc_auc", value=0.5, low=float("nan"), high=float("inf"))
    assert plain(estimate) == {"metric": "roc_auc", "value": 0.5, "low": None, "high": None}
    json.dumps(plain(np.array([1.0, np.nan])), allow_nan=False)


def test_columns_are_lists_with_null() -> None:
    pb = encode(Column.of("x", np.array([1.0, 2.0]), nulls=[False, True]))
    assert plain(pb) == {"name": "x", "dtype": "FP64", "values": [1.0, None]}


def test_maps_optionals_and_bytes() -> None:
    manifest = registry_pb2.Manifest(metrics={"roc_auc": 0.7})
    assert plain(manifest)["metrics"] == {"roc_auc": 0.7}
    assert "at_least" not in plain(evaluation_pb2.Threshold(metric="rmse", at_most=1))
    assert plain(registry_pb2.StoredReport(report=b"abc"))["report"] == "3 bytes"


def test_predictions() -> None:
    answer = Prediction({"p": np.array([[0.25, 0.75]], np.float32)}, "delay", 1, ("id",), "traffic")
    assert plain(answer)["outputs"] == {"p": [[0.25, 0.75]]}
    assert plain(answer)["prediction_ids"] == ["id"]


def test_moments() -> None:
    assert moment(0) == ""
    assert moment(1_380_628_800_000_000) == "2013-10-01 12:00:00Z"
    assert plain(np.array(["2013-10-01"], "datetime64[us]")) == ["2013-10-01T00:00:00.000000Z"]
