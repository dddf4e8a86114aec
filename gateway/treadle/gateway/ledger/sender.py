"""Carries the spool's closed segments to the evaluation service, and deletes each once it is acknowledged.

A segment may be sent twice (the acknowledgement can be lost); the ledger ignores predictions that it has. A record that
the ledger refuses for ever is set aside, so that it holds up no other.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

from google.protobuf.message import DecodeError
from opentelemetry import trace
from opentelemetry.trace import Link, NonRecordingSpan

from treadle.core.errors import InvalidInput, OutOfRange, TreadleError
from treadle.gateway.ledger.spool import Spool, read
from treadle.gateway.metrics import GatewayMeters
from treadle.observability.telemetry.propagation import parse_traceparent
from treadle.observability.telemetry.telemetry import Telemetry
from treadle.rpc.tracing import active
from treadle.v1 import evaluation_pb2, evaluation_pb2_grpc

_POLL_SECONDS = 0.25
_MOST_SECONDS = 5.0
_SEND_SECONDS = 30.0
_MESSAGE_BYTES = 128 << 10
REFUSED = "refused"


class Sender:
    """Sends in the background, in order, and waits longer each time that the evaluation service is out of reach."""

    def __init__(
        self,
        spool: Spool,
        folder: Path,
        evaluation: "evaluation_pb2_grpc.EvaluationServiceAsyncStub",
        telemetry: Telemetry,
        meters: GatewayMeters,
    ) -> None:
        self._spool = spool
        self._refused = folder / REFUSED
        self._evaluation = evaluation
        self._telemetry = telemetry
        self._meters = meters

    async def run(self) -> None:
        """For ever."""
        wait = _POLL_SECONDS
        while True:
            await asyncio.sleep(wait)
            try:
                await self.send_due()
                wait = _POLL_SECONDS
            except (TreadleError, OSError) as error:
                wait = min(_MOST_SECONDS, wait * 2)
                self._telemetry.log.warning(
                    "prediction records wait on disk", bytes=self._spool.bytes_held, error=str(error), next_try_in=wait
                )
            self._meters.spooled(self._spool.bytes_held)

    async def send_due(self) -> None:
        """Sends every closed segment, oldest first. Raises what the first that can't be sent raised."""
        for segment in self._spool.due():
            contents = await asyncio.to_thread(read, segment)
            if contents.torn_bytes:
                self._telemetry.log.warning(
                    "left out a torn record at the end of a segment", segment=segment.name, bytes=contents.torn_bytes
                )
            batches = self._parsed(contents.records, segment)
            if batches:
                await self._send_or_set_aside(batches)
            self._spool.forget(segment)

    def _parsed(self, records: Sequence[bytes], segment: Path) -> list[evaluation_pb2.PredictionBatch]:
        batches = []
        for record in records:
            try:
                batches.append(evaluation_pb2.PredictionBatch.FromString(record))
            except DecodeError:
                self._set_aside(record, f"{segment.name} holds what is no record")
        return batches

    async def _send_or_set_aside(self, batches: Sequence[evaluation_pb2.PredictionBatch]) -> None:
        try:
            await self._send(batches)
        except (InvalidInput, OutOfRange):
            if len(batches) == 1:
                self._set_aside(batches[0].SerializeToString(), "the evaluation service refuses it")
                return
            for batch in batches:
                await self._send_or_set_aside([batch])

    async def _send(self, batches: Sequence[evaluation_pb2.PredictionBatch]) -> None:
        span = self._span(batches)
        try:
            with active(span):
                response = await self._evaluation.RecordPredictions(_stream(batches), timeout=_SEND_SECONDS)
        finally:
            span.end()
        self._meters.sent(response.rows_recorded, response.rows_duplicate)

    def _span(self, batches: Sequence[evaluation_pb2.PredictionBatch]) -> trace.Span:
        """What the call is a child of: the one request's span, or a span with links to all the requests."""
        parents = [parse_traceparent(batch.traceparent) for batch in batches]
        known = [parent for parent in parents if parent is not None]
        if len(batches) == 1 and known:
            return NonRecordingSpan(known[0])
        return self._telemetry.tracer.start_span(
            "treadle.record_predictions",
            links=[Link(parent) for parent in known],
            attributes={"treadle.batch.size": len(batches)},
        )

    def _set_aside(self, record: bytes, why: str) -> None:
        """Keeps what can't be sent where a person can look at it."""
        with self._refused.open("ab") as file:
            file.write(len(record).to_bytes(4, "little") + record)
        self._meters.dropped("refused")
        self._telemetry.log.error("set a prediction record aside", file=str(self._refused), why=why)


async def _stream(batches: Sequence[evaluation_pb2.PredictionBatch]) -> AsyncIterator[evaluation_pb2.PredictionBatch]:
    """Several in a message: on a stream, a message costs more than a small batch in it."""
    message, size = evaluation_pb2.PredictionBatch(), 0
    for batch in batches:
        own = batch.ByteSize()
        if size and size + own > _MESSAGE_BYTES:
            yield message
            message, size = evaluation_pb2.PredictionBatch(), 0
        if size:
            message.others.append(batch)
        else:
            message.CopyFrom(batch)
        size += own
    yield message
