"""Scores of a registered version over many rows, computed by the inference service that also serves it."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress

import numpy as np

from treadle import oip
from treadle.core.column import Array
from treadle.core.errors import FailedPrecondition, Overloaded, TreadleError
from treadle.rpc.codec.tensors import decode_outputs, encode_inputs
from treadle.v1 import types_pb2

CHUNK_ROWS = 1024
IN_FLIGHT = 4
LOAD_SECONDS = 300.0
INFER_SECONDS = 60.0
ATTEMPTS = 6


class Predictor:
    """Predicts with registered versions through the inference service."""

    def __init__(self, stub: oip.GRPCInferenceServiceStub) -> None:
        self._stub = stub
        self._users: Counter[tuple[str, int]] = Counter()

    @asynccontextmanager
    async def loaded(self, ref: types_pb2.ModelRef) -> AsyncIterator[None]:
        """Keeps the version loaded while the context is open; it stays loaded afterwards if it was loaded before."""
        key = (ref.model, ref.version)
        if not self._users[key] and await self._is_ready(ref):
            yield
            return
        self._users[key] += 1
        version = {"version": oip.ModelRepositoryParameter(int64_param=ref.version)}
        try:
            await self._stub.RepositoryModelLoad(
                oip.RepositoryModelLoadRequest(model_name=ref.model, parameters=version), timeout=LOAD_SECONDS
            )
            yield
        finally:
            self._users[key] -= 1
            if not self._users[key]:
                # Deployed by now, or the inference service is gone: either way there is nothing to release.
                with suppress(TreadleError):
                    await self._stub.RepositoryModelUnload(
                        oip.RepositoryModelUnloadRequest(model_name=ref.model, parameters=version),
                        timeout=INFER_SECONDS,
                    )

    async def _is_ready(self, ref: types_pb2.ModelRef) -> bool:
        index = await self._stub.RepositoryIndex(oip.RepositoryIndexRequest(ready=True))
        return any(each.name == ref.model and each.version == str(ref.version) for each in index.models)

    async def scores(
        self, ref: types_pb2.ModelRef, inputs: Mapping[str, Array], output: str, on_rows: Callable[[int], None]
    ) -> Array:
        """The output tensor for all rows, in their order.

        `on_rows` receives the number of rows of each finished chunk.
        """
        rows = len(next(iter(inputs.values())))
        gate = asyncio.Semaphore(IN_FLIGHT)

        async def chunk(start: int) -> Array:
            async with gate:
                part = {name: array[start : start + CHUNK_ROWS] for name, array in inputs.items()}
                answer = await self._infer(ref, part, output)
                wanted = min(CHUNK_ROWS, rows - start)
                if len(answer) != wanted:
                    raise FailedPrecondition(f"{ref.model}/{ref.version} answered {len(answer)} rows of {wanted}")
                on_rows(wanted)
                return answer

        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(chunk(start)) for start in range(0, rows, CHUNK_ROWS)]
        except* TreadleError as failed:
            raise failed.exceptions[0] from failed
        return np.concatenate([task.result() for task in tasks])

    async def _infer(self, ref: types_pb2.ModelRef, inputs: Mapping[str, Array], output: str) -> Array:
        request = oip.ModelInferRequest(model_name=ref.model, model_version=str(ref.version))
        request.outputs.add(name=output)
        encode_inputs(request, inputs)
        for attempt in range(ATTEMPTS):
            try:
                return decode_outputs(await self._stub.ModelInfer(request, timeout=INFER_SECONDS))[output]
            except Overloaded as error:  # live traffic goes first
                if attempt == ATTEMPTS - 1:
                    raise
                await asyncio.sleep((error.retry_after_seconds or 0.1) * 2**attempt)
        raise AssertionError  # the last attempt returns or raises
