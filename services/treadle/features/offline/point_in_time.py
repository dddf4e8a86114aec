"""Point-in-time joins: for each row of a training set, the features that a lookup at its time would have returned.

Of each view, the newest row with event time <= request time is used, as the online store would after pushing the
history in time order. Statuses, ages and transforms are computed by the code that serves online lookups.
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
from treadle.features.lookup_plan import LookupPlan, ViewPlan, compile_plan
from treadle.features.offline import arrow
from treadle.features.offline.history import EVENT_TIME, history_sql, open_duckdb, quote_identifier
from treadle.features.transforms import run_transforms
from treadle.features.values import FeatureResult, FeatureStatus, ViewRows, context_feature, view_features

REQUEST_TIME = "event_timestamp"


def point_in_time_join(
    entity_rows: pa.Table, service: FeatureService, views: Iterable[FeatureView], *, provenance: bool = False
) -> pa.Table:
    """`entity_rows` with the service's outputs added, rows in the same order.

    `entity_rows` holds the entity columns, the service's context columns, and `event_timestamp`: the time of the
    request (an Arrow timestamp; without a zone it is UTC). Other columns, such as labels, pass through. With
    `provenance`, each output X is followed by `X__status` ("present", "null", "missing", "stale") and `X__age`
    (seconds; null if missing).

    InvalidInput names columns that are missing, of the wrong type or null where they must not be; NotFound names a
    source that does not exist.
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


def join_features(entity_rows: pa.Table, plan: LookupPlan) -> dict[str, FeatureResult]:
    """Every output of the plan by name, one value for each of `entity_rows`. Errors as `point_in_time_join`."""
    _check_columns(entity_rows, plan)
    request_micros = _request_micros(entity_rows)
    features: dict[str, FeatureResult] = {}
    for field in plan.context:
        features[field.name] = context_feature(arrow.from_arrow(field.name, entity_rows[field.name], field.dtype))
    keys = {each.name: _key_column(entity_rows, each.name, each.dtype) for each in plan.entities}
    if plan.views:
        with open_duckdb() as db:
            for view in plan.views:
                rows = _read_as_of(db, view, keys, request_micros)
                features.update(
                    view_features(view.features, view.fields, rows, request_micros, view.view.freshness_micros)
                )
    features.update(run_transforms(plan.transforms, features, entity_rows.num_rows))
    return {name: features[name] for name in plan.outputs}


def _check_columns(table: pa.Table, plan: LookupPlan) -> None:
    needed = [REQUEST_TIME, *(each.name for each in plan.entities), *(each.name for each in plan.context)]
    for name in needed:
        if name not in table.column_names:
            raise InvalidInput(f"the entity rows have no column {name!r}{did_you_mean(name, table.column_names)}")
    if not table.num_rows:
        raise InvalidInput("there are no entity rows")


def _request_micros(table: pa.Table) -> np.ndarray[Any, np.dtype[np.int64]]:
    column = table[REQUEST_TIME]
    if not pa.types.is_timestamp(column.type):
        raise InvalidInput(f"column {REQUEST_TIME!r} is {column.type}, wanted a timestamp")
    if column.null_count:
        raise InvalidInput(f"column {REQUEST_TIME!r} row {_first_null_row(column)} is null")
    request_micros: np.ndarray[Any, np.dtype[np.int64]] = arrow.timestamp_micros(column)
    return request_micros


def _key_column(table: pa.Table, name: str, dtype: str) -> Column:
    column = table[name]
    if column.null_count:
        raise InvalidInput(f"entity column {name!r} row {_first_null_row(column)} is null; entity keys cannot be")
    return arrow.from_arrow(name, column, dtype)


def _first_null_row(column: Any) -> int:
    return int(pc.index(pc.is_null(column), True).as_py())


def _read_as_of(
    db: Any, plan: ViewPlan, keys: Mapping[str, Column], request_micros: np.ndarray[Any, np.dtype[np.int64]]
) -> ViewRows:
    entities = [each.name for each in plan.view.entities]
    requests = pa.table({
        "_row": pa.array(np.arange(len(request_micros))),
        "_request_micros": pa.array(request_micros),
        **{f"_key_column{at}": arrow.to_arrow(keys[name]) for at, name in enumerate(entities)},
    })  # fmt: skip
    db.register("requests", requests)
    same = " AND ".join(f"a._key_column{at} = h.{quote_identifier(name)}" for at, name in enumerate(entities))
    fields = "".join(f", h.{quote_identifier(each.name)} AS _field{at}" for at, each in enumerate(plan.fields))
    found = db.sql(
        f"SELECT h.{EVENT_TIME}{fields} FROM requests a ASOF LEFT JOIN ({history_sql(db, plan.view, plan.fields)}) h "  # noqa: S608  # every name is quoted
        f"ON {same} AND a._request_micros >= h.{EVENT_TIME} ORDER BY a._row"
    ).to_arrow_table()
    db.unregister("requests")
    events = found[EVENT_TIME].combine_chunks()
    missing = events.is_null().to_numpy(zero_copy_only=False)
    columns = [history_column(each.name, found[f"_field{at}"], each.dtype) for at, each in enumerate(plan.fields)]
    return ViewRows(
        found=~missing,
        event_micros=pc.fill_null(events, 0).to_numpy(zero_copy_only=False),
        values=[each.values for each in columns],
        nulls=np.array([np.zeros(len(request_micros), bool) if each.nulls is None else each.nulls for each in columns]),
        absent=np.broadcast_to(missing, (len(columns), len(request_micros))),
    )


def history_column(name: str, data: Any, dtype: str) -> Column:
    """A result column of `history_sql`, converted to its defined type."""
    if dtype != "FP16":
        return arrow.from_arrow(name, data, dtype)
    wide = arrow.from_arrow(name, data, "FP32")
    with np.errstate(over="ignore"):
        return Column(name, dtype, wide.values.astype(np.float16), wide.nulls)


def _status_array(statuses: Any) -> Any:
    words = pa.array([each.name.lower() for each in FeatureStatus])
    return pa.DictionaryArray.from_arrays(pa.array(statuses.astype(np.int32) - 1), words)
