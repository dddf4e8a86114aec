"""Unpacking returns the packed rows bit for bit, under any layout."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from treadle.core.column import Column
from treadle.core.dtypes import numpy_dtype
from treadle.core.errors import DataLoss
from treadle.features.definitions import DTYPES
from treadle.features.online.packing import RowLayout, unpack_rows
from treadle.features.values import column_with_nulls


def columns_of(dtype: str, rows: int) -> st.SearchStrategy[np.ndarray[Any, Any]]:
    if dtype in {"STRING", "BYTES"}:
        items = st.text(max_size=5) if dtype == "STRING" else st.binary(max_size=5)
        return st.lists(items, min_size=rows, max_size=rows).map(lambda each: np.array([*each, None], object)[:-1])
    return hnp.arrays(numpy_dtype(dtype), rows)


@st.composite
def tables(draw: st.DrawFn) -> tuple[RowLayout, dict[str, Column]]:
    rows = draw(st.integers(1, 5))
    dtypes = draw(st.lists(st.sampled_from(DTYPES), min_size=1, max_size=12))
    fields = tuple((f"f{at}", dtype) for at, dtype in enumerate(dtypes))
    columns = {}
    for name, dtype in fields:
        nulls = draw(hnp.arrays(np.bool_, rows))
        columns[name] = column_with_nulls(name, dtype, draw(columns_of(dtype, rows)), nulls)
    return RowLayout.of(fields), columns


def raw(values: np.ndarray[Any, Any]) -> Any:
    return values.tolist() if values.dtype == object else values.tobytes()


@given(tables())
def test_unpacking_undoes_packing(table: tuple[RowLayout, dict[str, Column]]) -> None:
    layout, columns = table
    packed = layout.pack(columns)
    rows = unpack_rows([(at, value) for at, value in enumerate(packed)], layout.fields, {layout.number: layout})
    assert rows.found.all()
    assert rows.event_micros.tolist() == list(range(len(packed)))
    for (name, dtype), values, nulls in zip(layout.fields, rows.values, rows.nulls, strict=True):
        again = column_with_nulls(name, dtype, values, nulls)
        before = columns[name]
        assert raw(again.values) == raw(before.values)
        assert (before.nulls is None) == (again.nulls is None)
        assert again.nulls is None or before.nulls is None or again.nulls.tolist() == before.nulls.tolist()


NOTHING: Any = [None]
OLD = RowLayout.of((("wind", "FP64"), ("sky", "STRING")))
NEW = RowLayout.of((("gusts", "INT32"), ("sky", "STRING")))
LAYOUTS = {each.number: each for each in (OLD, NEW)}


def test_rows_of_old_layouts_are_read_by_name() -> None:
    (old,) = OLD.pack({"wind": Column.of("wind", [1.5]), "sky": Column.of("sky", ["clear"])})
    (new,) = NEW.pack(
        {"gusts": Column.of("gusts", [3], dtype="INT32"), "sky": Column.of("sky", NOTHING, dtype="STRING")}
    )
    rows = unpack_rows([(5, new), None, (4, old)], [("gusts", "INT32"), ("sky", "STRING")], LAYOUTS)
    gusts, sky = rows.values
    assert gusts.tolist() == [3, 0, 0]
    assert rows.absent is not None
    assert rows.absent.tolist() == [[False, True, True], [False, True, False]]
    assert sky.tolist()[2] == "clear"
    assert rows.nulls[1].tolist() == [True, True, False]
    assert rows.found.tolist() == [True, False, True]


def test_lookup_without_stored_rows() -> None:
    rows = unpack_rows([None, None], OLD.fields, LAYOUTS)
    assert not rows.found.any()
    assert rows.nulls[0].all()


WHOLE = OLD.pack({"wind": Column.of("wind", [1.5]), "sky": Column.of("sky", ["clear"])})[0]
STRANGE = [b"", b"\x09\x00\x00\x00rest", OLD.number.to_bytes(4, "little") + b"short"]


@pytest.mark.parametrize("value", [*STRANGE, WHOLE[:14], WHOLE[:-1], WHOLE + b"more"])
def test_damaged_rows_raise_data_loss(value: bytes) -> None:
    with pytest.raises(DataLoss, match="materialize the view again"):
        unpack_rows([(1, value)], OLD.fields, LAYOUTS)


def test_field_names_do_not_clash_with_the_record() -> None:
    layout = RowLayout.of((("layout", "FP32"), ("nulls", "BOOL")))
    packed = layout.pack({"layout": Column.of("layout", [1.0], dtype="FP32"), "nulls": Column.of("nulls", [True])})
    rows = unpack_rows([(0, packed[0])], layout.fields, {layout.number: layout})
    assert [each.tolist() for each in rows.values] == [[1.0], [True]]
