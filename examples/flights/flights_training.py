"""Training sets with point-in-time features, and the two models that learn from them."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from treadle.features import load_definitions
from treadle.features.offline.point_in_time import point_in_time_join
from treadle.plugins.packaging import save_model
from treadle.v1 import registry_pb2

HERE = Path(__file__).parent
DEFINITIONS = HERE / "flights_features.py"
SERVICE = "flight_delay"
ENTITIES = ("origin", "carrier", "route", "tailnum")
CONTEXT = ("hour", "minute", "weekday", "month", "distance", "planned_minutes")
LABEL = "late"
LATE_MINUTES = 15

# Cancelled flights have no arrival to be late for; flights without a registered aircraft can't be asked about.
_FLIGHTS = """
select flight_id, origin, carrier, route, tailnum, {context}, asked_at as event_timestamp, arrived_at,
  (arr_delay > {late})::double as late, lpad(hour::int::varchar, 2, '0') as hour_of_day
from '{path}'
where tailnum is not null and arr_delay is not null and asked_at >= ? and asked_at < ?
order by asked_at, flight_id
"""


def flights(data: Path, start: str, end: str) -> pa.Table:
    """Flights asked about in [start, end) UTC ("2013-09-01"): keys, context, the moment of asking, the label."""
    context = ", ".join(f"{name}::double as {name}" for name in CONTEXT)
    query = _FLIGHTS.format(context=context, late=LATE_MINUTES, path=data / "flights.parquet")
    with duckdb.connect() as db:
        db.execute("set timezone = 'UTC'")
        return db.sql(query, params=[start, end]).to_arrow_table()


@dataclass(frozen=True)
class Rows:
    """Flights with their features as they were known when asked."""

    table: pa.Table
    names: tuple[str, ...]
    """The features, in the order of the matrix."""

    @cached_property
    def matrix(self) -> NDArray[np.float64]:
        """(rows, features); NaN where a value is null or missing."""
        columns = [self.table[name].to_numpy(zero_copy_only=False) for name in self.names]
        return np.column_stack([column.astype(np.float64) for column in columns])

    @property
    def labels(self) -> NDArray[np.float64]:
        """1 for flights over 15 minutes late."""
        labels: NDArray[np.float64] = self.table[LABEL].to_numpy()
        return labels


def with_features(asked: pa.Table) -> Rows:
    """Joins each flight with what was known when it was asked about, by the same definitions that serving uses."""
    definitions = load_definitions(DEFINITIONS)
    joined = point_in_time_join(asked, definitions.service(SERVICE), definitions.views)
    added = [name for name in joined.column_names if name not in asked.column_names]
    return Rows(joined, (*CONTEXT, *added))


def lineage_of(rows: Rows) -> registry_pb2.Lineage:
    """What a model that learns from these rows comes from."""
    digest = hashlib.sha256(np.ascontiguousarray(rows.matrix).tobytes() + rows.labels.tobytes()).hexdigest()
    return registry_pb2.Lineage(data_digest=digest, trained_by="demo")


def train_boosting(rows: Rows, folder: Path, lineage: registry_pb2.Lineage) -> registry_pb2.Manifest:
    """scikit-learn's histogram gradient boosting: handles NaN by itself."""
    from sklearn.ensemble import HistGradientBoostingClassifier

    parameters: dict[str, Any] = {"max_iter": 80, "learning_rate": 0.1, "max_leaf_nodes": 31, "random_state": 7}
    model = HistGradientBoostingClassifier(**parameters).fit(rows.matrix, rows.labels)
    return _save(model, rows, folder, lineage, parameters, "histogram gradient boosting", np.float64)


def train_network(rows: Rows, folder: Path, lineage: registry_pb2.Lineage) -> registry_pb2.Manifest:
    """A small torch network; what is missing becomes the column's mean, inside the model."""
    import torch
    from torch import nn

    class DelayNetwork(nn.Module):
        mean: torch.Tensor
        deviation: torch.Tensor

        def __init__(self, mean: torch.Tensor, deviation: torch.Tensor) -> None:
            super().__init__()
            self.register_buffer("mean", mean)
            self.register_buffer("deviation", deviation)
            self.layers = nn.Sequential(
                nn.Linear(len(mean), 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 1)
            )

        def forward(self, features: torch.Tensor) -> dict[str, torch.Tensor]:
            known = torch.where(torch.isnan(features), self.mean, features)
            logits = self.layers((known - self.mean) / self.deviation).squeeze(-1)
            return {"probability": torch.sigmoid(logits)}

    torch.manual_seed(7)
    known = rows.matrix.astype(np.float32)
    features = torch.from_numpy(known)
    labels = torch.from_numpy(rows.labels.astype(np.float32))
    mean, deviation = np.nanmean(known, axis=0), np.nanstd(known, axis=0) + 1e-6
    model = DelayNetwork(torch.from_numpy(mean), torch.from_numpy(deviation))
    parameters = {"epochs": 4, "batch": 1024, "learning_rate": 2e-3, "seed": 7}
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    for batch in _batches(len(labels), epochs=4, size=1024):
        optimizer.zero_grad()
        loss = nn.functional.binary_cross_entropy(model(features[batch])["probability"], labels[batch])
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        optimizer.step()
    return _save(model.eval(), rows, folder, lineage, parameters, "two-layer network", np.float32)


def _batches(rows: int, epochs: int, size: int) -> Iterator[NDArray[np.int64]]:
    chance = np.random.default_rng(7)
    for _ in range(epochs):
        order = chance.permutation(rows)
        yield from np.array_split(order, max(1, rows // size))


def _save(
    model: Any,
    rows: Rows,
    folder: Path,
    lineage: registry_pb2.Lineage,
    parameters: dict[str, Any],
    description: str,
    dtype: type[np.floating[Any]],
) -> registry_pb2.Manifest:
    return save_model(
        model,
        folder,
        {"features": rows.matrix[:32].astype(dtype)},
        columns={"features": rows.names},
        allow_nan=True,
        feature_service=SERVICE,
        parameters=parameters,
        lineage=lineage,
        description=description,
    )


def save_rule(rule: Any, folder: Path, description: str) -> registry_pb2.Manifest:
    """Packages a function of `flights_rules`: it needs the scheduled hour and nothing else."""
    return save_model(rule, folder, {"hour": np.arange(5.0, 23.0)}, backend="python", description=description)
