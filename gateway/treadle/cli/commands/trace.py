"""`treadle trace`: the slowest requests, or one as a waterfall."""

import shutil
import sys
from typing import Any

import click

from treadle.cli.command import Session, command

_PIPE_WIDTH = 120


@command(on_mesh=True)
@click.argument("trace_id", required=False)
@click.option("--service", default="gateway", show_default=True, help='Whose handling is measured; "" for the whole.')
@click.option("--deployment", default="", help="Only requests to this deployment.")
@click.option("--within", type=float, default=0.0, metavar="SECONDS", help="Only what began in the last so many.")
@click.option("--limit", type=click.IntRange(1, 1000), default=20, show_default=True)
async def trace(
    session: Session, trace_id: str | None, service: str, deployment: str, within: float, limit: int
) -> None:
    """Show where requests spent their time.

    Without TRACE_ID, the slowest ones; with it (its first digits are enough), that one hop by hop, batches included.
    """
    async with session.client() as client:
        from treadle.cli.ui.to_jsonable import to_jsonable
        from treadle.observability.tracestore import waterfall
        from treadle.observability.tracestore.proto_codec import summary_from_proto, trace_from_proto
        from treadle.v1 import traces_pb2, traces_pb2_grpc

        stub = traces_pb2_grpc.TraceQueryServiceStub(client.channel)
        if trace_id is not None:
            found = await stub.GetTrace(traces_pb2.GetTraceRequest(trace_id=trace_id))
            session.out.show(to_jsonable(found), lambda: waterfall.waterfall(trace_from_proto(found), width=_width()))
            return
        request = traces_pb2.SlowestTracesRequest(
            service=service, deployment=deployment, within_seconds=within, limit=limit
        )
        slowest = await stub.SlowestTraces(request)
        session.out.show(
            to_jsonable(slowest.traces),
            lambda: _picture(waterfall.slow_table(list(map(summary_from_proto, slowest.traces)))),
        )


def _picture(table: Any) -> Any:
    if table.row_count:
        return table
    return "no traces yet: ask something first (treadle predict), and wait a second for it to arrive"


def _width() -> int:
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else _PIPE_WIDTH
