"""An evaluation service on loopback, and makers of recorded batches and labels."""

from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from treadle.core.column import Column
from treadle.evaluation.service import EvaluationSettings, open_service
from treadle.observability.telemetry.telemetry import Telemetry
from treadle.rpc.app.serving import running
from treadle.rpc.client.channel import Channel
from treadle.rpc.codec.columns import encode
from treadle.v1 import evaluation_pb2 as pb
from treadle.v1 import evaluation_pb2_grpc, types_pb2

NOWHERE = {"registry": "127.0.0.1:1", "features": "127.0.0.1:1", "inference": "127.0.0.1:1"}


@pytest.fixture
def telemetry() -> Telemetry:
    return Telemetry.recording("evaluation")


@pytest.fixture
async def evaluation(
    tmp_path: Path, telemetry: Telemetry
) -> AsyncIterator["evaluation_pb2_grpc.EvaluationServiceAsyncStub"]:
    """The evaluation service without its upstreams, which the ledger does not need."""
    home = tmp_path / "evaluation"
    async with (
        running(open_service, EvaluationSettings(), home=home, peers=NOWHERE, telemetry=telemetry) as address,
        Channel(address, service="evaluation", telemetry=Telemetry.off()) as channel,
    ):
        yield evaluation_pb2_grpc.EvaluationServiceStub(channel)


Batch = Callable[..., pb.PredictionBatch]


@pytest.fixture
def batch() -> Batch:
    """Makes a batch of predictions of deployment "d" by model m with the given scores."""

    def make(
        ids: Sequence[str],
        scores: Sequence[float] | None = None,
        *,
        version: int = 1,
        at: int = 1_000,
        **fields: object,
    ) -> pb.PredictionBatch:
        rows = len(ids)
        values = np.array([0.1] * rows if scores is None else scores)
        made = pb.PredictionBatch(
            prediction_ids=ids,
            deployment="d",
            model=types_pb2.ModelRef(model="m", version=version),
            served_by="traffic",
            at_micros=at,
            latency_seconds=0.01,
            entities=[encode(Column.of("origin", ["JFK"] * rows))],
            outputs=[encode(Column.of("probability", np.column_stack([1 - values, values])))],
        )
        made.features.add(
            column=encode(Column.of("wind", np.arange(rows) / 3, [True] + [False] * (rows - 1))),
            statuses=[types_pb2.FEATURE_STATUS_NULL] + [types_pb2.FEATURE_STATUS_PRESENT] * (rows - 1),
            ages_seconds=[1.5] * rows,
        )
        made.MergeFrom(pb.PredictionBatch(**fields))  # type: ignore[arg-type]
        return made

    return make


@pytest.fixture
def labels() -> Callable[..., pb.LabelBatch]:
    """Makes a batch of labels."""

    def make(ids: Sequence[str], values: Sequence[float], at: int = 5_000) -> pb.LabelBatch:
        return pb.LabelBatch(
            prediction_ids=ids, labels=encode(Column.of("label", list(values))), at_micros=[at] * len(ids)
        )

    return make
