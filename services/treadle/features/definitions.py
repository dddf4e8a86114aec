"""The classes of a definitions file: entities, views over history, request-time transforms, and feature services.

    aircraft = Entity("aircraft", "STRING")
    delays = FeatureView(
        "aircraft_delays", entities=[aircraft], source=Source("delays.parquet", "known_at"),
        fields=[Field("mean_delay", "FP32", unit="minutes")], freshness=timedelta(hours=6), owner="ops",
    )

    @transform(inputs=["aircraft_delays__mean_delay", "distance"], outputs=[Field("delay_per_km", "FP64")])
    def per_km(columns: Columns) -> Columns:
        return {"delay_per_km": columns["aircraft_delays__mean_delay"] / columns["distance"]}

    flights = FeatureService(
        "flights", sets=[delays["mean_delay"]], context=[Field("distance", "FP64", unit="km")], transforms=[per_km]
    )

Every object is immutable and validates itself in its constructor; InvalidInput says what to change.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Final, TypeVar

from numpy.typing import NDArray

from treadle.core.errors import InvalidInput
from treadle.core.hints import did_you_mean
from treadle.features.names import check_function, check_name, check_unique
from treadle.features.source import function_digest

Columns = Mapping[str, NDArray[Any]]
"""Input and output of a transform, arrays of N rows by column name: `def per_km(columns: Columns) -> Columns`."""
TransformFunction = Callable[[dict[str, NDArray[Any]]], Mapping[str, NDArray[Any]]]
_F = TypeVar("_F", bound=TransformFunction)

DTYPES: Final = (
    "BOOL", "INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64",
    "FP16", "FP32", "FP64", "STRING", "BYTES", "TIMESTAMP",
)  # fmt: skip
ENTITY_DTYPES: Final = ("STRING", *(name for name in DTYPES if name.startswith(("INT", "UINT"))))
_TRANSFORM_ATTRIBUTE: Final = "__treadle_transform__"


def _check_dtype(dtype: str, allowed: Sequence[str], what: str) -> None:
    if dtype not in allowed:
        raise InvalidInput(
            f"{what} has the unknown or unfit dtype {dtype!r:.40}{did_you_mean(str(dtype).upper(), allowed)}"
        )


@dataclass(frozen=True)
class Entity:
    """A key column by which the rows of a view are stored and looked up. `dtype` is STRING or an integer type."""

    name: str
    dtype: str
    description: str = ""

    def __post_init__(self) -> None:
        check_name(self.name, "entity")
        _check_dtype(self.dtype, ENTITY_DTYPES, f"entity {self.name!r}")


@dataclass(frozen=True)
class Field:
    """One typed column: of a view, of a request's context, or of a transform's output."""

    name: str
    dtype: str
    unit: str = ""
    """Free text: "minutes", "knots"."""
    sensitivity: str = ""
    """Non-empty ("pii") keeps the column's values out of logs, spans and the trace store."""
    description: str = ""

    def __post_init__(self) -> None:
        check_name(self.name, "field")
        _check_dtype(self.dtype, DTYPES, f"field {self.name!r}")


@dataclass(frozen=True)
class Source:
    """The historical data of a view."""

    path: str
    """A Parquet file, folder or glob, or any URL that DuckDB reads. Relative to the file that defines it."""
    timestamp_column: str
    """The column that says when a row's values became known (a timestamp, or microseconds since 1970 UTC)."""

    def __post_init__(self) -> None:
        if not self.path or not self.timestamp_column:
            raise InvalidInput("a source needs a path and a timestamp column")


@dataclass(frozen=True)
class FeatureSet:
    """Selected fields of a view; an empty selection means all fields."""

    view: str
    fields: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_name(self.view, "view")
        check_unique(self.fields, f"field of {self.view!r}")


@dataclass(frozen=True)
class FeatureView:
    """Columns that share entities, a history and a freshness limit. `view["a", "b"]` picks fields."""

    name: str
    entities: Sequence[Entity]
    source: Source | None
    """None: the view has no history; its rows come from pushes only."""
    fields: Sequence[Field]
    freshness: timedelta | None = None
    """Values older than this are STALE; None means never."""
    owner: str = ""
    description: str = ""

    def __post_init__(self) -> None:
        what = f"view {self.name!r}"
        check_name(self.name, "view")
        object.__setattr__(self, "entities", tuple(self.entities))
        object.__setattr__(self, "fields", tuple(self.fields))
        if not self.entities or not self.fields:
            raise InvalidInput(f"{what} needs at least one entity and one field")
        check_unique([each.name for each in self.columns()], f"{what}: column")
        if self.freshness is not None and self.freshness <= timedelta(0):
            raise InvalidInput(f"{what}: freshness must be positive; leave it out for values that never go stale")

    def __getitem__(self, names: str | tuple[str, ...]) -> FeatureSet:
        wanted = (names,) if isinstance(names, str) else names
        known = [each.name for each in self.fields]
        for name in wanted:
            if name not in known:
                raise InvalidInput(f"view {self.name!r} has no field {name!r:.80}{did_you_mean(name, known)}")
        return FeatureSet(self.name, tuple(wanted))

    @property
    def freshness_micros(self) -> int | None:
        """The freshness limit in microseconds; None: no limit."""
        return None if self.freshness is None else self.freshness // timedelta(microseconds=1)

    def columns(self) -> "tuple[Entity | Field, ...]":
        """All columns of a row: entities first, then fields."""
        return (*self.entities, *self.fields)


@dataclass(frozen=True)
class Transform:
    """A request-time transform: a function over columns, named so that the serving process can import the same code."""

    name: str
    function: str
    """ "package.module:function"."""
    inputs: Sequence[str]
    """Features ("view__field") and context columns that are passed to the function."""
    outputs: Sequence[Field]
    source_digest: str = ""
    """SHA-256 of the function's source."""
    call: TransformFunction | None = field(default=None, compare=False, repr=False)
    """The function itself; None for a transform decoded from the wire, until the definition store imports it."""

    def __post_init__(self) -> None:
        what = f"transform {self.name!r}"
        check_name(self.name, "transform")
        check_function(self.function, what)
        object.__setattr__(self, "inputs", tuple(self.inputs))
        object.__setattr__(self, "outputs", tuple(self.outputs))
        if not self.inputs or not self.outputs:
            raise InvalidInput(f"{what} needs at least one input and one output")
        check_unique(self.inputs, f"{what}: input")
        check_unique([each.name for each in self.outputs], f"{what}: output")


def transform(*, inputs: Sequence[str], outputs: Sequence[Field], name: str = "") -> Callable[[_F], _F]:
    """Decorates a plain module-level function as a request-time transform; the function stays callable as it is.

    The function gets a dict of N-row arrays and returns a dict with exactly `outputs`, N rows each. It must compute
    each row from that row alone (training calls it with many rows, serving with few) and must not keep state. The type
    of an argument follows from the column's type alone: FP columns unchanged with NaN for null, integer and BOOL
    columns as float64 with NaN for null, STRING and BYTES with None, TIMESTAMP with NaT. A returned value is null where
    it is NaN, None, NaT or masked.
    """
    if callable(inputs):
        raise InvalidInput("write @transform(inputs=[…], outputs=[…]), with brackets")

    def mark(function: _F) -> _F:
        module, qualified = function.__module__, function.__qualname__
        if module == "__main__" or "." in qualified:
            raise InvalidInput(f"transform {qualified!r} must be a plain function of an importable module")
        made = Transform(
            name or qualified.strip("_"), f"{module}:{qualified}", inputs, outputs, function_digest(function), function
        )
        setattr(function, _TRANSFORM_ATTRIBUTE, made)
        return function

    return mark


def is_transform(function: object) -> bool:
    """Whether `function` was decorated with @transform."""
    return isinstance(getattr(function, _TRANSFORM_ATTRIBUTE, None), Transform)


def _as_transform(given: "Transform | TransformFunction", what: str) -> Transform:
    made = given if isinstance(given, Transform) else getattr(given, _TRANSFORM_ATTRIBUTE, None)
    if not isinstance(made, Transform):
        raise InvalidInput(f"{what}: {getattr(given, '__name__', given)!r:.80} is not marked with @transform(…)")
    return made


@dataclass(frozen=True)
class FeatureService:
    """The features of one model: the view fields it reads, the context columns of a request, transforms and outputs."""

    name: str
    sets: Sequence[FeatureSet | FeatureView]
    context: Sequence[Field] = ()
    """Request-time columns, sent by callers."""
    transforms: Sequence["Transform | TransformFunction"] = ()
    outputs: Sequence[str] = ()
    """Columns that a lookup returns, in order; empty means every feature, then the context, then transform outputs."""
    owner: str = ""
    description: str = ""

    def __post_init__(self) -> None:
        what = f"feature service {self.name!r}"
        check_name(self.name, "feature service")
        sets = tuple(FeatureSet(each.name) if isinstance(each, FeatureView) else each for each in self.sets)
        object.__setattr__(self, "sets", sets)
        object.__setattr__(self, "context", tuple(self.context))
        object.__setattr__(self, "transforms", tuple(_as_transform(each, what) for each in self.transforms))
        object.__setattr__(self, "outputs", tuple(self.outputs))
        check_unique([each.view for each in sets], f"{what}: view")
        check_unique(self.outputs, f"{what}: output")
        if not sets and not self.context:
            raise InvalidInput(f"{what} is empty: it needs views or context columns")

    @property
    def feature_sets(self) -> tuple[FeatureSet, ...]:
        """`sets`, in which `__post_init__` has replaced whole views by a FeatureSet."""
        return self.sets  # type: ignore[return-value]  # converted in __post_init__

    @property
    def named_transforms(self) -> tuple[Transform, ...]:
        """`transforms`, in which `__post_init__` has replaced decorated functions by their Transform."""
        return self.transforms  # type: ignore[return-value]  # converted in __post_init__


@dataclass(frozen=True)
class Definitions:
    """Views and feature services that are applied together; names are unique."""

    views: tuple[FeatureView, ...] = ()
    services: tuple[FeatureService, ...] = ()

    def __post_init__(self) -> None:
        check_unique([each.name for each in self.views], "view")
        check_unique([each.name for each in self.services], "feature service")

    def view(self, name: str) -> FeatureView:
        """InvalidInput, with similar names, when the name is not defined."""
        return _find_named(name, self.views, "view")

    def service(self, name: str) -> FeatureService:
        """InvalidInput, with similar names, when the name is not defined."""
        return _find_named(name, self.services, "feature service")


_Named = TypeVar("_Named", FeatureView, FeatureService)


def _find_named(name: str, among: Sequence[_Named], what: str) -> _Named:
    for each in among:
        if each.name == name:
            return each
    raise InvalidInput(f"no {what} {name!r:.80}{did_you_mean(name, [each.name for each in among])}")
