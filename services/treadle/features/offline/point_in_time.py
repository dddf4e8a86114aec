"""Point-in-time joins: for each row of a training set, the features as a lookup at that moment would have found them.

Of each view, the newest row that was known at the asking time (event time <= asking time) counts, as in the online
store when the history was pushed in time order; statuses, ages and transforms come from the same code as online.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from treadle.core.column import Column
from treadle.core.errors import InvalidInput
from treadle.core.hints import did_you_mean
from treadle.features.definitions import FeatureService, FeatureView
from treadle.features.lookup_plan import Plan, ViewPlan, compile_plan
from treadle.features.offline import arrow
from treadle.features.offline.history import EVENT, connection, history_sql, ident
from treadle.features.transforms import run_transforms
from treadle.features.values import Feature, Status, ViewRows, context_feature, features_of

ASKED_AT = "event_timestamp"


def point_in_time_join(
    entity_rows: pa.Table, service: FeatureService, views: Iterable[FeatureView], *, provenance: bool = False
) -> pa.Table:
    """`entity_rows` with the service's outputs added, rows in the same order.

    `entity_rows` holds the entity columns, the service's context columns, and `event_timestamp`: the moment of asking
    (an Arrow timestamp; without a zone it is UTC). Other columns, such as labels, pass through. With `provenance`, each
    output X is followed by `X__status` ("present", "null", "missing", "stale") and `X__age` (seconds; null if missing).

    InvalidInput names columns that are missing, of the wrong type or null where they must not be; NotFound a source
    that is not there.
    """
    plan = compile_plan(service, {view.name: view for view in views})
    features = join_features(entity_rows, plan)
    table = entity_rows
    for name in plan.outputs:
        feature = features[name]
        values = arrow.to_arrow(feature.column)
        if name in table.column_names:
            table = table.set_column(table.column_names.index(name), name, values)
        else:
            table = table.append_column(name, values)
        if provenance:
            table = table.append_column(f"{name}__status", _status_array(feature.statuses))
            table = table.append_column(f"{name}__age", pa.array(feature.ages, mask=np.isnan(feature.ages)))
    return table


def join_features(entity_rows: pa.Table, plan: Plan) -> dict[str, Feature]:
    """Every output of the plan by name, one value for each of `entity_rows`. Errors as `point_in_time_join`."""
    _check_columns(entity_rows, plan)
    asked = _asked_at(entity_rows)
    features: dict[str, Feature] = {}
    for field in plan.context:
        features[field.name] = context_feature(arrow.from_arrow(field.name, entity_rows[field.name], field.dtype))
    keys = {each.name: _key(entity_rows, each.name, each.dtype) for each in plan.entities}
    if plan.views:
        with connection() as db:
            for view in plan.views:
                rows = _rows_as_of(db, view, keys, asked)
                features.update(features_of(view.features, view.fields, rows, asked, view.view.freshness_micros))
    features.update(run_transforms(plan.transforms, features, entity_rows.num_rows))
    return {name: features[name] for name in plan.outputs}


def _check_columns(table: pa.Table, plan: Plan) -> None:
    needed = [ASKED_AT, *(each.name for each in plan.entities), *(each.name for each in plan.context)]
    for name in needed:
        if name not in table.column_names:
            raise InvalidInput(f"the entity rows have no column {name!r}{did_you_mean(name, table.column_names)}")
    if not table.num_rows:
        raise InvalidInput("there are no entity rows")


def _asked_at(table: pa.Table) -> np.ndarray[Any, np.dtype[np.int64]]:
    column = table[ASKED_AT]
    if not pa.types.is_timestamp(column.type):
        raise InvalidInput(f"column {ASKED_AT!r} is {column.type}, wanted a timestamp")
    if column.null_count:
        raise InvalidInput(f"column {ASKED_AT!r} row {_first_null(column)} is null")
    asked: np.ndarray[Any, np.dtype[np.int64]] = arrow.micros(column)
    return asked


def _key(table: pa.Table, name: str, dtype: str) -> Column:
    column = table[name]
    if column.null_count:
        raise InvalidInput(f"entity column {name!r} row {_first_null(column)} is null; entity keys cannot be")
    return arrow.from_arrow(name, column, dtype)


def _first_null(column: Any) -> int:
    return int(pc.index(pc.is_null(column), True).as_py())


def _rows_as_of(
    db: Any, plan: ViewPlan, keys: Mapping[str, Column], asked: np.ndarray[Any, np.dtype[np.int64]]
) -> ViewRows:
    entities = [each.name for each in plan.view.entities]
    asking = pa.table({
        "_row": pa.array(np.arange(len(asked))),
        "_asked": pa.array(asked),
        **{f"_key{at}": arrow.to_arrow(keys[name]) for at, name in enumerate(entities)},
    })  # fmt: skip
    db.register("asking", asking)
    same = " AND ".join(f"a._key{at} = h.{ident(name)}" for at, name in enumerate(entities))
    fields = "".join(f", h.{ident(each.name)} AS _field{at}" for at, each in enumerate(plan.fields))
    found = db.sql(
        f"SELECT h.{EVENT}{fields} FROM asking a ASOF LEFT JOIN ({history_sql(db, plan.view, plan.fields)}) h "  # noqa: S608  # every name is quoted
        f"ON {same} AND a._asked >= h.{EVENT} ORDER BY a._row"
    ).to_arrow_table()
    db.unregister("asking")
    events = found[EVENT].combine_chunks()
    missing = events.is_null().to_numpy(zero_copy_only=False)
    columns = [history_column(each.name, found[f"_field{at}"], each.dtype) for at, each in enumerate(plan.fields)]
    return ViewRows(
        found=~missing,
        event_micros=pc.fill_null(events, 0).to_numpy(zero_copy_only=False),
        values=[each.values for each in columns],
        nulls=np.array([np.zeros(len(asked), bool) if each.nulls is None else each.nulls for each in columns]),
        absent=np.broadcast_to(missing, (len(columns), len(asked))),
    )


def history_column(name: str, data: Any, dtype: str) -> Column:
    """A column that `history_sql` gave, in its defined type."""
    if dtype != "FP16":
        return arrow.from_arrow(name, data, dtype)
    wide = arrow.from_arrow(name, data, "FP32")
    with np.errstate(over="ignore"):
        return Column(name, dtype, wide.values.astype(np.float16), wide.nulls)


def _status_array(statuses: Any) -> Any:
    words = pa.array([each.name.lower() for each in Status])
    return pa.DictionaryArray.from_arrays(pa.array(statuses.astype(np.int32) - 1), words)
