"""Request columns are cast to their defined types."""

import numpy as np
import pytest

from treadle.core.column import Column
from treadle.core.errors import InvalidInput
from treadle.features.definitions import Field
from treadle.features.online.requests import coerce_columns


def fit(values: list[int], nulls: list[bool] | None = None) -> Column:
    column = Column.of("x", np.array(values, np.int64), nulls)
    return coerce_columns({"x": column}, {"x": Field("x", "UINT8")}, ["x"], "columns")["x"]


@pytest.mark.parametrize("values", [[], [0, 255]])
def test_whole_numbers_take_the_defined_type(values: list[int]) -> None:
    fitted = fit(values)
    assert (fitted.dtype, fitted.values.tolist()) == ("UINT8", values)


@pytest.mark.parametrize("value", [-1, 256])
def test_a_number_out_of_range_is_refused_unless_it_is_null(value: int) -> None:
    with pytest.raises(InvalidInput, match="row 1 is outside the range of UINT8"):
        fit([1, value])
    assert fit([1, value], [False, True]).nulls.tolist() == [False, True]  # type: ignore[union-attr]
