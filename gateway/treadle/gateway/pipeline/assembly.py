"""Model inputs out of feature, context and entity columns, as the version's signature wants them.

What the caller sends wins over what was looked up, so a request can override a feature.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from treadle.core.column import Column
from treadle.core.dtypes import numpy_dtype
from treadle.core.errors import InvalidInput, Unavailable
from treadle.gateway.pipeline.feature_batch import MISSING, NULL, PRESENT, STALE, FeatureBatch, Features, FeatureValues
from treadle.gateway.pipeline.request import Ask, Tensors
from treadle.gateway.policy.deployments import ServedVersion
from treadle.plugins.tensor_spec import FLOATS, TensorSpec

Array = np.ndarray[Any, np.dtype[Any]]
_ALL_PRESENT = bytes([PRESENT])


class CannotAnswer(Unavailable):
    """A version lacks a value that it can't do without: the next step of the chain is asked."""


@dataclass(frozen=True, slots=True)
class Assembled:
    """Inputs by tensor name, and the features among them that were stale."""

    inputs: Tensors
    stale: tuple[str, ...] = ()


def covered(version: ServedVersion, ask: Ask) -> bool:
    """Whether the caller sent every column that the version needs, so that nothing must be looked up."""
    return all(name in ask.context or name in ask.entities for name in version.needs)


def from_tensors(version: ServedVersion, ask: Ask) -> Assembled:
    """The caller's tensors as they are. InvalidInput where they do not fit the signature."""
    specs = {spec.name: spec for spec in version.signature.inputs}
    inputs: dict[str, Array] = {}
    for name, column in ask.tensors.items():
        values = column.values
        spec = specs.get(name)
        if column.nulls is not None and column.nulls.any():
            if spec is None or not spec.allow_nan or column.dtype not in FLOATS:
                raise _invalid("tensors", name, f"is null in row {int(column.nulls.argmax())}; null is not accepted")
            values = column.as_float(column.dtype)
        inputs[name] = values
    version.signature.check_inputs(inputs)
    return Assembled(inputs)


def from_columns(version: ServedVersion, ask: Ask, features: Features, *, strict: bool = False) -> Assembled:
    """One tensor for each input of the signature, N rows each.

    With `strict`, a stale value counts as missing. Raises CannotAnswer when a looked-up value is null, missing or of a
    type that does not fit where NaN can't stand for it; InvalidInput when it was the caller who should have sent it.

    The tensors are made for the whole batch that the features are of, once. Where that is not possible (a row lacks a
    value, or the caller sent a column that the lookup did not take) they are made for this request alone.
    """
    batch = features.batch
    whole = None
    if features and _took_all(batch, version, ask):
        whole = batch.once(("inputs", version.ref, strict), lambda: _of_all(version, batch, strict))
    if whole is None:
        return _assembled(version, _Sources({**ask.entities, **ask.context}, features, strict), ask.rows)
    rows = slice(features.start, features.stop)
    stale = tuple([name for name in whole.stale if (batch.features[name].statuses[rows] == STALE).any()])
    return Assembled({name: tensor[rows] for name, tensor in whole.inputs.items()}, stale)


def _took_all(batch: FeatureBatch, version: ServedVersion, ask: Ask) -> bool:
    """Whether the lookup took every column of the caller's that the version needs."""
    if len(batch.sent) == len(ask.entities) + len(ask.context):
        return True
    return not any(name in version.needs and name not in batch.sent for name in (*ask.entities, *ask.context))


def _of_all(version: ServedVersion, batch: FeatureBatch, strict: bool) -> Assembled | None:
    """The inputs of all requests of a batch; None when not every row of it can be had."""
    try:
        return _assembled(version, _Sources(batch.sent, batch.features, strict), batch.rows)
    except (InvalidInput, CannotAnswer):
        return None


def _assembled(version: ServedVersion, sources: "_Sources", rows: int) -> Assembled:
    inputs = {spec.name: _tensor(spec, sources, rows) for spec in version.signature.inputs}
    version.signature.check_inputs(inputs)
    return Assembled(inputs, tuple(sources.stale))


class _Sources:
    """Finds columns by name, and remembers which were stale."""

    def __init__(self, sent: Mapping[str, Column], features: Mapping[str, FeatureValues], strict: bool) -> None:
        self._sent = sent
        self._features = features
        self._strict = strict
        self.stale: list[str] = []

    def find(self, name: str) -> tuple[Column, NDArray[np.bool_] | None, bool]:
        """The column, its null rows (NaN counts as null), and whether it is the caller's."""
        column = self._sent.get(name)
        if column is not None:
            return column, _nulls(column, column.nulls), True
        feature = self._features.get(name)
        if feature is None:
            raise _invalid("context", name, "is missing; the model needs it")
        return feature.column, self._feature_nulls(name, feature), False

    def plain_numbers(self, name: str) -> Array | None:
        """One number a row, all there and fresh; None where it is otherwise."""
        column = self._sent.get(name)
        if column is None:
            feature = self._features.get(name)
            if feature is None or feature.statuses.tobytes().strip(_ALL_PRESENT):
                return None
            column = feature.column
        values = column.values
        return values if column.nulls is None and values.ndim == 1 and values.dtype.kind in "biuf" else None

    def _feature_nulls(self, name: str, feature: FeatureValues) -> NDArray[np.bool_] | None:
        statuses = feature.statuses
        nulls = feature.column.nulls
        # Statuses are mostly all PRESENT, the smallest: one comparison settles it.
        if statuses.size and statuses.max() > PRESENT:
            absent = (statuses == NULL) | (statuses == MISSING)
            stale = statuses == STALE
            if stale.any():
                self.stale.append(name)
                absent = absent | stale if self._strict else absent
            nulls = absent if nulls is None else nulls | absent
        return _nulls(feature.column, nulls)


def _nulls(column: Column, nulls: NDArray[np.bool_] | None) -> NDArray[np.bool_] | None:
    values = column.values
    if values.dtype.kind in "fM":
        nan = np.isnan(values) if values.dtype.kind == "f" else np.isnat(values)
        if nan.any() and values.ndim == 1:
            nulls = nan if nulls is None else nulls | nan
    return nulls if nulls is not None and nulls.any() else None


def _tensor(spec: TensorSpec, sources: _Sources, rows: int) -> Array:
    if not spec.columns:
        values = _values(spec.name, spec, sources)
        return values.reshape(rows, 1) if values.ndim == 1 and spec.shape in {(-1, 1), (-1, -1)} else values
    matrix = np.empty((rows, len(spec.columns)), numpy_dtype(spec.dtype))
    return matrix if _fill_plainly(matrix, spec, sources) else _fill(matrix, spec, sources)


def _fill_plainly(matrix: Array, spec: TensorSpec, sources: _Sources) -> bool:
    """Fills it with numbers of which none is missing, as they mostly are; False where a column is not like that."""
    if matrix.dtype.kind != "f":
        return False
    with np.errstate(over="ignore"):
        for position, name in enumerate(spec.columns):
            values = sources.plain_numbers(name)
            if values is None:
                return False
            matrix[:, position] = values
    return spec.allow_nan or not np.isnan(matrix).any()


def _fill(matrix: Array, spec: TensorSpec, sources: _Sources) -> Array:
    for position, name in enumerate(spec.columns):
        values = _values(name, spec, sources)
        if values.ndim != 1:
            raise CannotAnswer(f"column {name!r} has rows of shape {list(values.shape[1:])}; one value a row is wanted")
        matrix[:, position] = values
    return matrix


def _values(name: str, spec: TensorSpec, sources: _Sources) -> Array:
    """One column in the spec's dtype, NaN in its null rows."""
    column, nulls, callers = sources.find(name)
    values = _cast(column, spec.dtype)
    if values is None:
        raise _unfit(name, f"is {column.dtype}, which does not fit {spec.dtype} of input {spec.name!r}", callers)
    if nulls is None:
        return values
    if not spec.allow_nan:
        row = int(nulls.argmax())
        raise _unfit(name, f"has no usable value in row {row}, and the model does not accept that", callers)
    values = values.copy() if values is column.values else values
    values[nulls] = np.nan
    return values


def _cast(column: Column, dtype: str) -> Array | None:
    """The values in `dtype`; None when that would change their meaning."""
    values = column.values
    if column.dtype == dtype:
        return values
    if dtype == "BYTES" and column.dtype == "STRING":
        encoded = np.empty(values.size, dtype=object)
        encoded[:] = [text.encode() for text in values.flat]
        return encoded.reshape(values.shape)
    wanted = numpy_dtype(dtype)
    if values.dtype.kind == "M" and dtype in {"INT64", "FP64"}:
        return values.astype("datetime64[us]").view(np.int64).astype(wanted)  # microseconds since 1970
    if wanted.kind == "f" and values.dtype.kind in "biuf":
        with np.errstate(over="ignore"):
            return values.astype(wanted)
    if wanted.kind in "iu" and values.dtype.kind in "biu" and _in_range(values, wanted):
        return values.astype(wanted)
    return None


def _in_range(values: Array, wanted: np.dtype[Any]) -> bool:
    limits = np.iinfo(wanted)
    return not values.size or (int(values.min()) >= limits.min and int(values.max()) <= limits.max)


def _unfit(name: str, what: str, callers: bool) -> InvalidInput | CannotAnswer:
    return _invalid("context", name, what) if callers else CannotAnswer(f"features: {name} {what}")


def _invalid(where: str, name: str, what: str) -> InvalidInput:
    return InvalidInput.at(f"{where}[{name}]", what)
