"""How the stages of the pipeline are composed.

A stage takes a batch and the next stage. When it returns, each request of the batch has its outcome, or stands in
`batch.failures` with the reason why the present step of the fallback chain could not answer it. A stage that raises a
TreadleError says so of all its requests.
"""

from collections.abc import Awaitable, Callable, Sequence
from functools import partial

from treadle.gateway.pipeline.batch.request_batch import RequestBatch

Handler = Callable[[RequestBatch], Awaitable[None]]
Stage = Callable[[RequestBatch, Handler], Awaitable[None]]


def compose(stages: Sequence[Stage]) -> Handler:
    """The stages as one handler; the first is the outermost, and the last calls nothing."""
    handler: Handler = _end
    for stage in reversed(stages):
        handler = partial(_call, stage, handler)
    return handler


def _call(stage: Stage, handler: Handler, batch: RequestBatch) -> Awaitable[None]:
    return stage(batch, handler)


async def _end(batch: RequestBatch) -> None:
    raise AssertionError("the last stage calls no other")
