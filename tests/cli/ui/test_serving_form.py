"""Which form of a model serves, as `treadle model show` and the model card tell it."""

from treadle.cli.ui.model_card import model_card
from treadle.cli.ui.serving_form import serving_form
from treadle.v1 import registry_pb2

KEPT = registry_pb2.Compiled(
    backend="onnx",
    folder="compiled",
    relative_tolerance=1e-5,
    absolute_tolerance=1e-6,
    rows_checked=1088,
    largest_difference=1.19e-7,
    speeds=[
        registry_pb2.Speed(rows=1, original_micros=84, compiled_micros=7),
        registry_pb2.Speed(rows=64, original_micros=90, compiled_micros=30),
    ],
)


def test_a_compiled_form_is_described_with_its_measurements() -> None:
    assert serving_form(registry_pb2.Manifest(backend="sklearn", compiled=KEPT)) == (
        "onnx, compiled from sklearn: 12.0× as fast for 1 row, 3.0× as fast for 64 rows; checked on 1,088 rows, "
        "largest difference 1.2e-07 (tolerance 1.0e-05 relative + 1.0e-06 absolute)"
    )


def test_ties_are_described() -> None:
    tied = registry_pb2.Compiled()
    tied.CopyFrom(KEPT)
    tied.ties = 3
    assert "3 labels differ where classes tie" in serving_form(registry_pb2.Manifest(backend="sklearn", compiled=tied))


def test_the_reason_for_no_compiled_form_is_described() -> None:
    manifest = registry_pb2.Manifest(backend="xgboost", compiled=registry_pb2.Compiled(reason="booster dart …"))
    assert serving_form(manifest) == "xgboost; not compiled: booster dart …"


def test_a_model_that_was_never_tried_is_served_as_it_is() -> None:
    assert serving_form(registry_pb2.Manifest(backend="torch")) == "torch"


def test_the_card_says_it() -> None:
    version = registry_pb2.ModelVersion(manifest=registry_pb2.Manifest(backend="sklearn", compiled=KEPT))
    assert "Served by onnx, compiled from sklearn: 12.0× as fast for 1 row" in model_card(version, [])
