"""The machine form of results."""

import json

import numpy as np

from treadle.cli.ui.to_jsonable import time_text, to_jsonable
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
    found = to_jsonable(deployment)
    assert found["traffic"] == [{"ref": {"model": "delay", "version": 2}, "weight": 100.0}]
    assert found["feature_policy"] == "STRICT"
    assert found["updated_micros"] == 1_380_000_000_000_000
    assert found["fallbacks"] == []


def test_nan_becomes_null_so_that_json_is_json() -> None:
    estimate = evaluation_pb2.Estimate(metric="roc_auc", value=0.5, low=float("nan"), high=float("inf"))
    assert to_jsonable(estimate) == {"metric": "roc_auc", "value": 0.5, "low": None, "high": None}
    json.dumps(to_jsonable(np.array([1.0, np.nan])), allow_nan=False)


def test_columns_are_lists_with_null() -> None:
    pb = encode(Column.of("x", np.array([1.0, 2.0]), nulls=[False, True]))
    assert to_jsonable(pb) == {"name": "x", "dtype": "FP64", "values": [1.0, None]}


def test_maps_optionals_and_bytes() -> None:
    manifest = registry_pb2.Manifest(metrics={"roc_auc": 0.7})
    assert to_jsonable(manifest)["metrics"] == {"roc_auc": 0.7}
    assert "at_least" not in to_jsonable(evaluation_pb2.Threshold(metric="rmse", at_most=1))
    assert to_jsonable(registry_pb2.StoredReport(report=b"abc"))["report"] == "3 bytes"


def test_predictions() -> None:
    answer = Prediction({"p": np.array([[0.25, 0.75]], np.float32)}, "delay", 1, ("id",), "traffic")
    assert to_jsonable(answer)["outputs"] == {"p": [[0.25, 0.75]]}
    assert to_jsonable(answer)["prediction_ids"] == ["id"]


def test_timestamps() -> None:
    assert time_text(0) == ""
    assert time_text(1_380_628_800_000_000) == "2013-10-01 12:00:00Z"
    assert to_jsonable(np.array(["2013-10-01"], "datetime64[us]")) == ["2013-10-01T00:00:00.000000Z"]
