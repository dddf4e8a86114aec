"""The form of requests: everything that is wrong with one is named, and a good schema is good for its deployment."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from treadle.core.column import Column
from treadle.core.errors import InvalidInput
from treadle.core.model_ref import ModelRef
from treadle.gateway.pipeline.batch.request import CONTEXT, ENTITIES, PARTS, TENSORS, ColumnHeader, PredictionRequest
from treadle.gateway.pipeline.validation import RequestValidator
from treadle.gateway.policy.deployments import FeatureNeeds, ServedDeployment, ServedShare, ServedVersion
from treadle.plugins.tensor_spec import TensorSpec
from treadle.plugins.tensors import Signature

REF = ModelRef("m", 1)
MAX_ROWS = 3


def deployment(*columns: str) -> ServedDeployment:
    """One whose model takes these columns, and features by tail."""
    signature = Signature(tuple(TensorSpec(name, "FP64", (-1,)) for name in columns), (TensorSpec("y", "FP64", (-1,)),))
    needs = FeatureNeeds("f", {"tail": "STRING"}, {}, frozenset())
    versions = {REF: ServedVersion(REF, signature, "f")}
    return ServedDeployment("d", (ServedShare(REF, 100),), versions=versions, feature_services={"f": needs})


FLIGHTS = deployment("load", "wind")
NOT_DESCRIBED = ServedDeployment("d", (ServedShare(REF, 100),))


def request(
    *columns: tuple[str, str, Any], nulls: dict[int, list[bool]] | None = None, **options: Any
) -> PredictionRequest:
    """Of columns (part, name, values)."""
    headers = []
    for part, name, values in columns:
        column = Column.of(name, values)
        headers.append(ColumnHeader(part, name, column.dtype, column.row_shape))
    masks = {position: np.array(mask) for position, mask in (nulls or {}).items()}
    return PredictionRequest("d", tuple(headers), [values for _, _, values in columns], masks, **options)


TAIL, LOAD = (ENTITIES, "tail", ["N1", "N2"]), (CONTEXT, "load", [1.0, 2.0])


@pytest.mark.parametrize(
    "good",
    [
        request(TAIL),
        request(TAIL, LOAD),
        request(LOAD),
        request(TAIL, LOAD, nulls={1: [True, False]}),
        request(TAIL, LOAD, nulls={0: [False, False]}),
        request(TAIL, LOAD, outputs=("y", "z")),
        request((TENSORS, "anything", [[1.0, 2.0]])),
        request((ENTITIES, "tail", ["N1"] * MAX_ROWS)),
    ],
)
def test_a_well_formed_request_is_let_through(good: PredictionRequest) -> None:
    validator = RequestValidator(MAX_ROWS)
    for _ in range(2):
        validator.check(good, FLIGHTS)


BAD = {
    "a column twice": (request(TAIL, TAIL), {"entities[tail]": "is there twice"}),
    "an entity in the context": (
        request(TAIL, (CONTEXT, "tail", ["N1", "N2"])),
        {"context[tail]": "is an entity as well; send it once"},
    ),
    "uneven rows": (
        request(TAIL, (CONTEXT, "load", [1.0])),
        {"context[load]": "has 1 rows where the first column has 2"},
    ),
    "a null entity": (
        request(TAIL, LOAD, nulls={0: [False, True]}),
        {"entities[tail]": "is null in row 1; every row needs its keys"},
    ),
    "several keys a row": (
        request((ENTITIES, "tail", [["N1", "N2"]])),
        {"entities[tail]": "must hold one key a row"},
    ),
    "an unknown column": (
        request(TAIL, (CONTEXT, "laod", [1.0, 2.0])),
        {"context[laod]": "is used by nothing in 'd'; it takes load, tail, wind"},
    ),
    "an unknown entity": (
        request((ENTITIES, "tial", ["N1"])),
        {"entities[tial]": "is used by nothing in 'd'; it takes load, tail, wind"},
    ),
    "tensors with entities": (
        request(TAIL, (TENSORS, "x", [1.0, 2.0])),
        {"tensors": "exclude entities and context; send the one or the other"},
    ),
    "tensors with context": (
        request(LOAD, (TENSORS, "x", [1.0, 2.0])),
        {"tensors": "exclude entities and context; send the one or the other"},
    ),
    "too many rows": (
        request((ENTITIES, "tail", ["N1"] * 4)),
        {"rows": "4 rows are more than the 3 of one request; split it"},
    ),
    "no rows": (request((ENTITIES, "tail", [])), {"entities": "hold no rows; send at least one"}),
    "no rows of tensors": (request((TENSORS, "x", [])), {"tensors": "hold no rows; send at least one"}),
    "no columns": (request(), {"entities": "are missing; send entities (with context), or tensors"}),
    "an output twice": (request(TAIL, outputs=("y", "y")), {"outputs": "name one output twice"}),
    "several mistakes": (
        request(
            TAIL, (CONTEXT, "laod", [1.0, 2.0]), (CONTEXT, "load", [1.0]), nulls={0: [True, False]}, outputs=("y", "y")
        ),
        {
            "context[load]": "has 1 rows where the first column has 2",
            "context[laod]": "is used by nothing in 'd'; it takes load, tail, wind",
            "entities[tail]": "is null in row 0; every row needs its keys",
            "outputs": "name one output twice",
        },
    ),
}


@pytest.mark.parametrize("what", BAD)
@pytest.mark.parametrize("schema_is_known", [False, True])
def test_a_malformed_request_is_refused_with_all_that_is_wrong(what: str, schema_is_known: bool) -> None:
    bad, wrong = BAD[what]
    validator = RequestValidator(MAX_ROWS)
    if schema_is_known:
        validator.check(request(TAIL, LOAD), FLIGHTS)
        validator.check(request(TAIL), FLIGHTS)
    with pytest.raises(InvalidInput, match="the request is malformed") as caught:
        validator.check(bad, FLIGHTS)
    assert {violation.field: violation.description for violation in caught.value.violations} == wrong
    assert len(caught.value.violations) == len(wrong)
    for violation in wrong.items():
        assert " ".join(violation) in caught.value.message


def test_columns_are_not_known_while_a_version_is_not_described() -> None:
    RequestValidator(MAX_ROWS).check(request((CONTEXT, "anything", [1.0])), NOT_DESCRIBED)


def test_a_good_schema_is_refused_once_the_deployment_has_changed() -> None:
    validator, changed = RequestValidator(MAX_ROWS), deployment("wind")
    validator.check(request(TAIL, LOAD), FLIGHTS)
    for _ in range(2):
        with pytest.raises(InvalidInput, match=r"context\[load\] is used by nothing"):
            validator.check(request(TAIL, LOAD), changed)
    validator.check(request(TAIL, LOAD), FLIGHTS)


@st.composite
def requests(draw: st.DrawFn) -> PredictionRequest:
    columns, nulls = [], {}
    for position in range(draw(st.integers(0, 3))):
        rows = draw(st.sampled_from([2, 2, 2, 0, 1, 4]))
        columns.append((draw(st.sampled_from(PARTS)), draw(st.sampled_from(["tail", "load", "laod"])), [1.0] * rows))
        if draw(st.integers(0, 4)) == 0:
            nulls[position] = draw(st.lists(st.booleans(), min_size=rows, max_size=rows))
    return request(*columns, nulls=nulls, outputs=draw(st.sampled_from([(), (), ("y",), ("y", "y")])))


def verdict(validator: RequestValidator, asked: PredictionRequest, policy: ServedDeployment) -> Any:
    try:
        validator.check(asked, policy)
    except InvalidInput as error:
        return error.violations
    return None


@given(st.lists(st.tuples(requests(), st.sampled_from([FLIGHTS, deployment("wind"), NOT_DESCRIBED])), max_size=12))
def test_a_verdict_does_not_depend_on_what_was_checked_before(
    asked: list[tuple[PredictionRequest, ServedDeployment]],
) -> None:
    validator = RequestValidator(MAX_ROWS)
    for each in asked:
        assert verdict(validator, *each) == verdict(RequestValidator(MAX_ROWS), *each)


def test_schemas_that_are_kept_are_limited_in_number() -> None:
    validator = RequestValidator(MAX_ROWS)
    for number in range(2_000):
        validator.check(request((TENSORS, f"x{number}", [1.0])), FLIGHTS)
    assert len(validator._good) <= 1_024
