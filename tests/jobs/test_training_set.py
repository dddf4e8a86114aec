"""Training sets, their metadata and digests."""

from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from treadle.core.errors import InvalidInput
from treadle.features import FeatureService, FeatureView
from treadle.jobs.training_set import build_training_set, data_digest, read_metadata, read_training_set

from .conftest import hours


def entity_rows(winds: int = 3) -> pa.Table:
    return pa.table(
        {
            "origin": ["EWR", "JFK", "LGA"],
            "event_timestamp": [hours(winds)] * 3,
            "distance": [1.0, 2.0, 3.0],
            "late": [True, False, None],
        }
    )


def test_a_training_set_is_written_with_its_lineage(tmp_path: Path, view: FeatureView, service: FeatureService) -> None:
    made = build_training_set(entity_rows(), service, [view], tmp_path / "sets" / "flights.parquet", provenance=True)
    table = pq.read_table(made.path)
    assert made.features == ("weather__wind", "weather__half", "weather__sky", "distance")
    assert made.columns == tuple(table.column_names)
    assert table["weather__sky"].to_pylist() == ["fog", None, None]
    assert table["weather__sky__status"].to_pylist() == ["present", "null", "missing"]
    assert table["late"].to_pylist() == [True, False, None]
    assert read_training_set(made.path) == made
    assert data_digest(table) == made.data_digest
    assert [each.name for each in made.path.parent.iterdir()] == ["flights.parquet"]


def test_the_digest_follows_the_data_alone(tmp_path: Path, view: FeatureView, service: FeatureService) -> None:
    first, again, other = (
        build_training_set(entity_rows(winds), service, [view], tmp_path / f"{name}.parquet")
        for name, winds in (("first", 3), ("again", 3), ("other", 2))
    )
    assert first.data_digest == again.data_digest != other.data_digest
    assert first.definitions_digest == other.definitions_digest
    renamed = replace(view, owner="someone else")
    changed = build_training_set(entity_rows(), service, [renamed], tmp_path / "changed.parquet")
    assert changed.data_digest == first.data_digest
    assert changed.definitions_digest != first.definitions_digest


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t.rename_columns({"late": "latte"}),
        lambda t: t.set_column(2, "distance", pa.array([1.0, 2.0, None])),
        lambda t: t.set_column(2, "distance", pa.array([1.0, 2.0, 3.0], pa.float32())),
        lambda t: t.set_column(0, "origin", pa.array(["EWRJ", "FK", "LGA"])),
        lambda t: t.take([1, 0, 2]),
        lambda t: t.slice(0, 2),
    ],
)
def test_any_difference_changes_the_digest(change: object) -> None:
    assert callable(change)
    assert data_digest(change(entity_rows())) != data_digest(entity_rows())


def test_chunks_do_not_change_the_digest() -> None:
    table = entity_rows()
    chunked = pa.concat_tables([table.slice(0, 1), table.slice(1)])
    assert data_digest(chunked) == data_digest(table)


def test_files_that_are_no_training_set(tmp_path: Path) -> None:
    plain = tmp_path / "plain.parquet"
    pq.write_table(entity_rows(), plain)
    (tmp_path / "text.parquet").write_text("not Parquet")
    for path in (plain, tmp_path / "text.parquet", tmp_path / "gone.parquet"):
        with pytest.raises(InvalidInput, match="is not a training set"):
            read_training_set(path)


def test_a_join_that_fails_leaves_the_old_file(tmp_path: Path, view: FeatureView, service: FeatureService) -> None:
    path = tmp_path / "flights.parquet"
    made = build_training_set(entity_rows(), service, [view], path)
    with pytest.raises(InvalidInput, match="no column 'distance'"):
        build_training_set(entity_rows().drop_columns(["distance"]), service, [view], path)
    assert read_training_set(path) == made


def test_a_table_that_was_read_keeps_its_metadata(tmp_path: Path, view: FeatureView, service: FeatureService) -> None:
    made = build_training_set(entity_rows(), service, [view], tmp_path / "flights.parquet")
    assert read_metadata(pq.read_table(made.path).schema)["feature_service"] == service.name
    assert read_metadata(entity_rows().schema) == {}
