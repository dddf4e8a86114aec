"""The RPCs of the evaluation service: they decode requests, call the core and encode its results."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from opentelemetry.trace import Link

from treadle.core.errors import InvalidInput
from treadle.evaluation import codec
from treadle.evaluation.ledger.ledger import Entry, Ledger, RecordCounts
from treadle.evaluation.ledger.queries import LedgerQuery
from treadle.evaluation.ledger.recording import labels_of, predictions_of
from treadle.evaluation.monitoring.live import live_metrics
from treadle.evaluation.offline.metrics import EvaluationMetric, Task, metrics_for
from treadle.evaluation.offline.runner import Progress, Runner
from treadle.observability.telemetry.propagation import parse_traceparent
from treadle.observability.telemetry.telemetry import Telemetry
from treadle.v1 import evaluation_pb2 as pb
from treadle.v1 import evaluation_pb2_grpc, types_pb2

FLUSH_ROWS = 10_000
"""A longer stream is stored in parts of about this many rows, to bound memory."""
FLUSH_BYTES = 16 << 20
"""A part ends at this many bytes, even with fewer rows."""
MAXIMUM_LINKS = 1000
"""Links of a span to the requests whose predictions it records."""


class EvaluationServicer(evaluation_pb2_grpc.EvaluationServiceServicer):
    """Runs evaluations, and records to and queries the ledger."""

    def __init__(
        self,
        runner: Runner,
        ledger: Ledger,
        telemetry: Telemetry,
        plugin_metrics: Callable[[Task], Sequence[EvaluationMetric]],
        parallel_evaluations: int,
        live_metrics_rows: int,
    ) -> None:
        self._runner = runner
        self._ledger = ledger
        self._tracer = telemetry.tracer
        self._plugin_metrics = plugin_metrics
        self._live_metrics_rows = live_metrics_rows
        self._evaluation_slots = asyncio.Semaphore(parallel_evaluations)
        self._rows = telemetry.meters.counter(
            "treadle_ledger_rows_total", "Rows sent to the ledger.", ["kind", "outcome"]
        )

    async def Evaluate(self, request: pb.EvaluateRequest, context: Any) -> AsyncIterator[pb.EvaluateResponse]:
        """Streams progress, then the report."""
        async with self._evaluation_slots:
            async for event in self._runner.run(request):
                if isinstance(event, Progress):
                    step = pb.Progress(stage=event.stage, rows_done=event.done, rows_total=event.total)
                    yield pb.EvaluateResponse(progress=step)
                else:
                    yield pb.EvaluateResponse(report=event)

    async def RecordPredictions(
        self, request_iterator: AsyncIterator[pb.PredictionBatch], context: Any
    ) -> pb.RecordResponse:
        """Stores predictions. InvalidInput names the first invalid batch; the batches before it are stored."""
        return await self._record("predictions", _with_nested(request_iterator), predictions_of)

    async def RecordLabels(self, request_iterator: AsyncIterator[pb.LabelBatch], context: Any) -> pb.RecordResponse:
        """Stores labels. InvalidInput names the first invalid batch; the batches before it are stored."""
        return await self._record("labels", request_iterator, labels_of)

    async def GetLiveMetrics(self, request: pb.GetLiveMetricsRequest, context: Any) -> pb.GetLiveMetricsResponse:
        """Live metrics of a deployment, computed on its recorded predictions and labels."""
        if not request.deployment:
            raise InvalidInput("deployment must be set")
        if request.from_micros < 0 or request.to_micros < 0:
            raise InvalidInput("from_micros and to_micros must not be negative")
        task = codec.task_from_proto(request.task or pb.TASK_BINARY_CLASSIFICATION)
        found = await asyncio.to_thread(self._live_metrics, request, task)
        return pb.GetLiveMetricsResponse(
            versions=[
                pb.LiveMetrics(
                    model=types_pb2.ModelRef(model=each.model, version=each.version),
                    predictions=each.counts.predictions,
                    labelled=each.counts.labelled,
                    degraded=each.counts.degraded,
                    scored=each.scored,
                    metrics=codec.estimates_to_proto(each.metrics),
                )
                for each in found
            ]
        )

    def _live_metrics(self, request: pb.GetLiveMetricsRequest, task: Task) -> Any:
        metrics = metrics_for(task, self._plugin_metrics(task))
        query = LedgerQuery(
            request.deployment,
            request.from_micros,
            request.to_micros,
            request.model.model,
            request.model.version,
            request.include_fallbacks,
        )
        live = self._ledger.live(query, self._live_metrics_rows)
        return live_metrics(live, task, metrics, output=request.score_output)

    async def _record(
        self, kind: str, batches: AsyncIterator[Any], entries_of: Callable[[Any, str], Sequence[Entry]]
    ) -> pb.RecordResponse:
        """Records a stream of batches part by part."""
        total, index = RecordCounts(), 0
        async for part in _parts(batches):
            # In a thread, so that the event loop serves other calls meanwhile.
            entries, problem = await asyncio.to_thread(_valid_entries, part, index, entries_of)
            total += await self._store(kind, entries, _links(part))
            if problem is not None:
                stored = f"the {problem.index} batches before it are stored; leave this one out"
                raise InvalidInput(f"{problem.error.message}; {stored}", problem.error.violations)
            index += len(part)
        return pb.RecordResponse(rows_recorded=total.rows, rows_duplicate=total.duplicates)

    async def _store(self, kind: str, entries: Sequence[Entry], links: Sequence[Link]) -> RecordCounts:
        """Stores entries within a span that links the requests of the predictions."""
        if not entries:
            return RecordCounts()
        rows = sum(len(entry.keys) for entry in entries)
        attributes: dict[str, str | int] = {"treadle.rows": rows, "treadle.ledger.kind": kind}
        with self._tracer.start_as_current_span("ledger record", links=links, attributes=attributes):
            recorded = await self._ledger.record(entries)
        self._rows.add(recorded.rows, kind=kind, outcome="recorded")
        self._rows.add(recorded.duplicates, kind=kind, outcome="duplicate")
        return recorded


async def _with_nested(messages: AsyncIterator[pb.PredictionBatch]) -> AsyncIterator[pb.PredictionBatch]:
    """The batches of a stream, including those nested in `others` of a message."""
    async for message in messages:
        for batch in _unnested(message):
            yield batch


def _unnested(message: pb.PredictionBatch) -> Iterator[pb.PredictionBatch]:
    others = list(message.others)
    message.ClearField("others")
    yield message
    for other in others:
        yield from _unnested(other)


@dataclass(frozen=True)
class _Problem:
    """An invalid batch: its index in the stream, and the error."""

    index: int
    error: InvalidInput


async def _parts(batches: AsyncIterator[Any]) -> AsyncIterator[list[Any]]:
    part: list[Any] = []
    rows = size = 0
    async for batch in batches:
        part.append(batch)
        rows += len(batch.prediction_ids)
        size += batch.ByteSize()
        if rows >= FLUSH_ROWS or size >= FLUSH_BYTES:
            yield part
            part, rows, size = [], 0, 0
    if part:
        yield part


def _valid_entries(
    part: Sequence[Any], start: int, entries_of: Callable[[Any, str], Sequence[Entry]]
) -> tuple[list[Entry], _Problem | None]:
    """The entries of the batches before the first invalid one, and the problem of that one, if any."""
    entries: list[Entry] = []
    for index, batch in enumerate(part, start):
        try:
            entries += entries_of(batch, f"batches[{index}]")
        except InvalidInput as error:
            return entries, _Problem(index, error)
    return entries, None


def _links(part: Sequence[Any]) -> list[Link]:
    parents = (getattr(batch, "traceparent", "") for batch in part[:MAXIMUM_LINKS])
    contexts = (parse_traceparent(parent) for parent in parents if parent)
    return [Link(context) for context in contexts if context is not None]
