"""JSON bodies of `POST /v1/deployments/{name}:predict` to and from what the core works on.

A column is a list with one item a row; null is a null. Types follow from the model's signature and the feature service
where they are known, else from the values: true → BOOL, 3 → INT64, 3.5 → FP64, "x" → STRING. JSON has neither NaN nor
infinity: an answer holds null in their place, and a request that contains them is refused.
"""

import base64
import json
from collections.abc import Mapping, Sequence
from math import isfinite
from typing import Any

import numpy as np

from treadle.core.column import Column
from treadle.core.dtypes import numpy_dtype
from treadle.core.errors import InvalidInput, Violation
from treadle.gateway.pipeline.batch.feature_batch import MISSING, NULL, PRESENT, STALE, FeatureBatch, FeatureValues
from treadle.gateway.pipeline.batch.prediction import PredictionRecord, PredictionResult, provenance_of
from treadle.gateway.pipeline.batch.request import PARTS, ColumnHeader, PredictionRequest, RequestColumns
from treadle.gateway.policy.deployments import ServedDeployment

_STATUSES = {PRESENT: "PRESENT", NULL: "NULL", MISSING: "MISSING", STALE: "STALE"}
_OPTIONS = frozenset({"request_id", "sticky_key", "return_features", "now_micros"})
_PLAIN: Mapping[str, type] = {"STRING": str, "FP64": float, "BOOL": bool}
"""Dtypes whose values are in JSON what they are in Python, whatever they are."""
_FIELDS: Mapping[str, type] = {
    "entities": dict,
    "context": dict,
    "tensors": dict,
    "outputs": list,
    "request_id": str,
    "sticky_key": str,
    "return_features": bool,
    "now_micros": int,
}
# The kinds of numbers in JSON that a dtype takes, by numpy's letters for the two.
_FITS = {"f": "iuf", "i": "iu", "u": "iu", "M": "iu", "b": "b"}
_INT64 = np.iinfo(np.int64)
Array = np.ndarray[Any, np.dtype[Any]]


def _refuse_constant(constant: str) -> None:
    raise InvalidInput(f"the body holds {constant}, which is not JSON; send null")


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant)


def parse(body: bytes) -> dict[str, Any]:
    """A JSON object; InvalidInput for anything else."""
    try:
        found = _DECODER.decode(body.decode(json.detect_encoding(body)))
        if b"\\u" in body:  # half of a surrogate pair may be escaped in JSON; no text that travels can hold it
            json.dumps(found, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"the body is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise InvalidInput("the body must be a JSON object")
    return found


class RequestDecoder:
    """Makes requests of JSON bodies. What is known of a deployment's types is worked out once for each policy."""

    def __init__(self) -> None:
        self._dtypes: dict[str, tuple[ServedDeployment, Mapping[str, Mapping[str, str]]]] = {}

    def decode(self, body: Mapping[str, Any], deployment: ServedDeployment, version: int | None) -> PredictionRequest:
        """InvalidInput names each field that is unknown or of another type than the document says."""
        _check_fields(body)
        dtypes = self._known_dtypes(deployment)
        columns = RequestColumns()
        for part in PARTS:
            for name, items in body.get(part, {}).items():
                _decode_column(part, name, items, dtypes[part].get(name), columns)
        return PredictionRequest(
            deployment.name,
            tuple(columns.schema),
            columns.values,
            columns.nulls,
            tuple(body.get("outputs", ())),
            version=version,
            **{name: value for name, value in body.items() if name in _OPTIONS},
        )

    def _known_dtypes(self, deployment: ServedDeployment) -> Mapping[str, Mapping[str, str]]:
        known_for, dtypes = self._dtypes.get(deployment.name, (None, {}))
        if known_for is not deployment:
            dtypes = _dtypes(deployment)
            self._dtypes[deployment.name] = deployment, dtypes
        return dtypes


def _check_fields(body: Mapping[str, Any]) -> None:
    violations = [
        Violation(name, f"must be {_called(_FIELDS[name])}" if name in _FIELDS else "is unknown")
        for name, value in body.items()
        if type(value) is not _FIELDS.get(name)
    ]
    outputs = body.get("outputs", ())
    if isinstance(outputs, list) and not all(isinstance(name, str) for name in outputs):
        violations.append(Violation("outputs", "must be a list of names"))
    moment = body.get("now_micros")
    if type(moment) is int and not _INT64.min <= moment <= _INT64.max:
        violations.append(Violation("now_micros", "must fit into 64 bits"))
    if violations:
        raise InvalidInput("; ".join(f"{v.field} {v.description}" for v in violations), violations)


def _decode_column(part: str, name: str, items: Any, dtype: str | None, columns: RequestColumns) -> None:
    """Plain values stay the Python values that they are, until they are joined with those of other requests."""
    plain = _PLAIN.get(dtype or "")
    if plain is not None and isinstance(items, list) and all(type(item) is plain for item in items):
        columns.add_values(ColumnHeader(part, name, dtype or ""), items)
    else:
        columns.add(part, column_from_json(part, name, items, dtype))


def column_from_json(part: str, name: str, values: Any, dtype: str | None) -> Column:
    """A column from a list, one item a row; items of one type, or nested lists of one shape."""
    where = f"{part}[{name}]"
    if not isinstance(values, list):
        raise InvalidInput.at(where, "must be a list with one item a row")
    try:
        if dtype in {"STRING", "BYTES"} or (dtype is None and _has_text(values)):
            return _text(where, name, values, dtype or "STRING")
        return _numbers(where, name, values, dtype)
    except (ValueError, TypeError, OverflowError):
        wanted = f"of {dtype}" if dtype else "of one type"
        raise InvalidInput.at(where, f"must hold values {wanted}, in rows of one shape") from None


def _has_text(item: Any) -> bool:
    return isinstance(item, str) or (isinstance(item, list) and any(map(_has_text, item)))


def _text(where: str, name: str, values: list[Any], dtype: str) -> Column:
    flat = np.array(values, dtype=object)
    nulls = np.array([item is None for item in values], dtype=bool)
    for item in flat.flat:
        if item is not None and type(item) is not str:
            raise InvalidInput.at(where, f"must hold strings: it is {dtype}")
    if dtype == "BYTES":
        flat = _bytes(flat)
    else:
        flat[nulls] = ""
    return Column(name, dtype, flat, nulls if nulls.any() else None)


def _bytes(texts: Array) -> Array:
    encoded = np.empty(texts.size, dtype=object)
    encoded[:] = [b"" if text is None else base64.b64decode(text, validate=True) for text in texts.flat]
    return encoded.reshape(texts.shape)


def _numbers(where: str, name: str, values: list[Any], dtype: str | None) -> Column:
    nulls = np.array([item is None for item in values], dtype=bool)
    filler = next((item for item in values if item is not None), False if dtype == "BOOL" else 0)
    if isinstance(filler, list):
        filler = np.zeros_like(np.asarray(filler)).tolist()
    array = np.asarray([filler if item is None else item for item in values])
    if array.dtype.kind not in "biuf":
        raise TypeError
    named = dtype or ("BOOL" if array.dtype.kind == "b" else "FP64" if array.dtype.kind == "f" else "INT64")
    cast = cast_exactly(where, array, named)
    if cast is None:
        raise InvalidInput.at(where, f"holds a value outside the range of {named}")
    return Column(name, named, cast, nulls if nulls.any() else None)


def cast_exactly(where: str, array: Array, dtype: str) -> Array | None:
    """Numbers of a JSON body as `dtype`; None if one is out of its range, InvalidInput if they are of another kind.

    A float that `dtype` holds only roughly is rounded: 0.1 is meant.
    """
    wanted = numpy_dtype(dtype)
    if array.size and array.dtype.kind not in _FITS[wanted.kind]:
        raise InvalidInput.at(where, f"must hold {dtype} values")
    with np.errstate(over="ignore"):
        cast = array.astype(wanted)
    lost = np.isinf(cast).any() if wanted.kind == "f" else wanted.kind != "M" and not np.array_equal(cast, array)
    return None if lost else cast


def prediction_to_json(prediction: PredictionResult, request: PredictionRequest, trace_id: str) -> dict[str, Any]:
    """The prediction as the document `openapi.json` describes it."""
    content = {
        "request_id": request.request_id,
        **prediction.record.encoded(_each_request)[prediction.index],
        "trace_id": trace_id,
    }
    features = prediction.features if request.return_features else None
    if features is not None:
        content["features"] = {name: _feature(each) for name, each in features.features.items()}
    return content


def _each_request(record: PredictionRecord) -> Sequence[Mapping[str, Any]]:
    """Of each request of a record, what follows from the record."""
    outputs = {column.name: values_to_json(column) for column in record.outputs}
    model = {"name": record.ref.model, "version": record.ref.version}
    contents = []
    for rows in record.row_ranges:
        content: dict[str, Any] = {
            "outputs": {name: items[rows] for name, items in outputs.items()},
            "model": model,
            "prediction_ids": list(record.prediction_ids[rows]),
            "served_by": record.served_by,
            "degraded_reason": record.degraded_reason,
        }
        if record.features is not None:
            content["provenance"] = _provenance(record.features, rows)
        contents.append(content)
    return contents


def _provenance(features: FeatureBatch, rows: slice) -> Mapping[str, Any]:
    found = provenance_of(features, rows)
    age = found.oldest_age_seconds
    return found._asdict() | {"oldest_age_seconds": age if isfinite(age) else None}


def values_to_json(column: Column) -> list[Any]:
    """One item a row; null for nulls, NaN and infinities; BYTES in base64; TIMESTAMP in microseconds."""
    values = column.values
    if column.dtype == "BYTES":
        items: list[Any] = [base64.b64encode(value).decode("ascii") for value in values.flat]
    elif values.dtype.kind == "M":
        items = values.astype("datetime64[us]").view(np.int64).tolist()
    elif values.dtype.kind == "f":
        items = finite_or_none(values)
    else:
        items = values.tolist()
    if column.nulls is not None:
        items = [None if null else item for item, null in zip(items, column.nulls.tolist(), strict=True)]
    return items


def finite_or_none(values: Array) -> list[Any]:
    """Floats as JSON can hold them: None in place of NaN and infinities."""
    finite = np.isfinite(values)
    if not finite.all():
        values = values.astype(object)
        values[~finite] = None
    items: list[Any] = values.tolist()
    return items


def _feature(feature: FeatureValues) -> dict[str, Any]:
    return {
        "values": values_to_json(feature.column),
        "statuses": [_STATUSES.get(status, "UNSPECIFIED") for status in feature.statuses.tolist()],
        "ages_seconds": finite_or_none(feature.ages_seconds),
    }


def _dtypes(deployment: ServedDeployment) -> dict[str, dict[str, str]]:
    """What is known of the types of columns, by part."""
    found: dict[str, dict[str, str]] = {part: {} for part in PARTS}
    for ref in reversed((deployment.primary, *deployment.refs)):
        version = deployment.versions.get(ref)
        if version is None:
            continue
        found["tensors"] |= version.input_dtypes
        found["context"] |= {spec.name: spec.dtype for spec in version.signature.inputs if not spec.columns}
        found["entities"] |= found["context"]
    for ref in deployment.refs:
        version = deployment.versions.get(ref)
        needs = deployment.feature_services.get(version.feature_service) if version else None
        if needs is not None:
            found["entities"] |= needs.entities
            found["context"] |= needs.context
    return found


def _called(wanted: type) -> str:
    return {
        dict: "an object of columns",
        list: "a list",
        str: "a string",
        bool: "true or false",
        int: "a whole number",
    }[wanted]
