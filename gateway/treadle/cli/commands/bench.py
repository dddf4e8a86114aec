"""`treadle bench`: measures latency and throughput of a deployment on the running mesh."""

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import click

from treadle.cli.command import Session, command
from treadle.cli.commands.predict import row_options, rows_from_options

if TYPE_CHECKING:
    from treadle.client import AsyncClient
    from treadle.v1.prediction_pb2 import PredictRequest

_PERCENTILES = (50.0, 99.0, 99.9)


@dataclass
class _Load:
    """The measurements of one load: a number of requests kept in flight for some seconds."""

    in_flight: int
    seconds: float = 0.0
    taken: list[float] = field(default_factory=list)
    """The latency of each answered request, in seconds."""
    errors: Counter[str] = field(default_factory=Counter)
    """The number of errors by gRPC code."""

    def document(self) -> dict[str, Any]:
        """The load as a JSON object; percentiles are null if no request was answered."""
        import numpy as np

        found = np.percentile(self.taken, _PERCENTILES) * 1000 if self.taken else (None,) * 3
        p50, p99, p999 = (None if each is None else round(float(each), 3) for each in found)
        return {
            "in_flight": self.in_flight,
            "requests_per_second": round(len(self.taken) / self.seconds, 1),
            "p50_ms": p50,
            "p99_ms": p99,
            "p999_ms": p999,
            "errors": dict(self.errors),
        }


@command(on_mesh=True)
@click.argument("deployment")
@row_options
@click.option(
    "--in-flight", multiple=True, type=click.IntRange(1, 1024), default=(1, 16, 64), show_default=True,
    help="Requests kept in flight; may be repeated.",
)  # fmt: skip
@click.option(
    "--seconds", type=click.FloatRange(0, 600, min_open=True), default=3.0, show_default=True, help="Of each."
)
async def bench(
    session: Session,
    deployment: str,
    entities: tuple[str, ...],
    context: tuple[str, ...],
    tensors: tuple[str, ...],
    rows: str | None,
    in_flight: tuple[int, ...],
    seconds: float,
) -> None:
    """Measure how fast a deployment answers here.

    It sends one request again and again through the gateway: the rows that you give as to `treadle predict`, else the
    first sample row of the model. The predictions are recorded like any others. This client is Python on the same
    machine, and shares its cores: `make bench` measures with less in the way.
    """
    async with session.client() as client:
        if entities or context or tensors or rows:
            request = _request(deployment, rows_from_options(entities, context, tensors, rows))
        else:
            request = await _sample(client, deployment)
        ask = _asking(client, request)
        await ask()  # an invalid request fails before any measurement
        loads = []
        for count in in_flight:
            session.out.note(f"{count} in flight for {seconds:g} s …")
            loads.append(await _loaded(ask, count, seconds))
    found = [load.document() for load in loads]
    session.out.show({"deployment": deployment, "loads": found}, lambda: _table(found))


def _request(deployment: str, given: Mapping[str, Mapping[str, Any]]) -> "PredictRequest":
    from treadle.client import StreamRequest

    return StreamRequest(deployment, given.get("entities"), given.get("context"), given.get("tensors")).to_proto()


async def _sample(client: "AsyncClient", deployment: str) -> "PredictRequest":
    """A request with the first sample row of the version with the most traffic."""
    from treadle.rpc.codec.columns import decode, encode
    from treadle.v1.prediction_pb2 import PredictRequest

    policy = await client.get_deployment(deployment)
    ref = max(policy.traffic, key=lambda share: share.weight).ref
    version = await client.get_version(f"{ref.model}/{ref.version}")
    columns = [encode(decode(column).take(slice(1))) for column in version.manifest.sample_inputs]
    return PredictRequest(deployment=deployment, tensors=columns)


def _asking(client: "AsyncClient", request: "PredictRequest") -> Callable[[], Awaitable[Any]]:
    from treadle.v1.prediction_pb2_grpc import PredictionServiceStub

    predict = PredictionServiceStub(client.channel).Predict
    return lambda: predict(request)


async def _loaded(ask: Callable[[], Awaitable[Any]], in_flight: int, seconds: float) -> _Load:
    """Runs a closed loop: each of `in_flight` callers sends its next request when the last one is answered."""
    from treadle.core.errors import TreadleError

    load = _Load(in_flight)
    started = time.perf_counter()
    ends = started + seconds

    async def caller() -> None:
        while (asked := time.perf_counter()) < ends:
            try:
                await ask()
            except TreadleError as error:
                load.errors[error.code.name] += 1
            else:
                load.taken.append(time.perf_counter() - asked)

    await asyncio.gather(*(caller() for _ in range(in_flight)))
    load.seconds = time.perf_counter() - started
    return load


def _table(loads: list[dict[str, Any]]) -> Any:
    from treadle.cli.ui.output import table

    columns = [">in flight", ">req/s", ">p50 ms", ">p99 ms", ">p99.9 ms", "errors"]
    return table(columns, [_row(load) for load in loads])


def _row(load: dict[str, Any]) -> list[str]:
    times = ("" if load[name] is None else f"{load[name]:.2f}" for name in ("p50_ms", "p99_ms", "p999_ms"))
    errors = ", ".join(f"{count:,} {code}" for code, count in load["errors"].items())
    return [str(load["in_flight"]), f"{load['requests_per_second']:,.0f}", *times, errors or "none"]
