"""The services that the pipeline calls, as it sees them."""

from collections.abc import Sequence
from typing import Protocol

from treadle.core.column import Column
from treadle.core.model_ref import ModelRef
from treadle.gateway.pipeline.batch.feature_batch import FeatureBatch
from treadle.gateway.pipeline.batch.request_batch import Tensors


class FeatureClient(Protocol):
    """Looks features up online."""

    async def look_up(
        self, service: str, entities: Sequence[Column], context: Sequence[Column], now_micros: int, timeout: float
    ) -> FeatureBatch:
        """Features by name, one row for each row of the columns.

        `now_micros` is the moment that ages are counted from, 0: now. `timeout` is in seconds. Raises TreadleError:
        InvalidInput when the caller's columns are wrong, DeadlineExceeded when the time is up, others when the service
        can't answer.
        """
        ...


class InferenceClient(Protocol):
    """Runs a model version."""

    async def infer(self, ref: ModelRef, inputs: Tensors, outputs: Sequence[str], timeout: float) -> Tensors:
        """Outputs by name with as many rows as the inputs; all of them when `outputs` is empty. Raises TreadleError."""
        ...
