"""Numbers of thousands of digits or more than 64 bits in requests are refused, and the service continues."""

from typing import Any

import numpy as np
import pytest

from treadle import oip
from treadle.core.errors import DeadlineExceeded, InvalidInput, NotFound
from treadle.core.model_ref import ModelRef
from treadle.inference.service import InferenceSettings
from treadle.rpc.codec.tensors import encode_inputs

LONG = ["9" * 20, "9" * 400, "9" * 5000]


@pytest.mark.parametrize("version", [0, -1, 1 << 63, 10**20])
def test_invalid_versions(version: int) -> None:
    with pytest.raises(InvalidInput, match="is no model version"):
        ModelRef.checked("m", version)


def test_keys_are_read_as_they_are_written() -> None:
    last = ModelRef.checked("m", (1 << 63) - 1)
    assert ModelRef.parse(str(last)) == last


@pytest.mark.parametrize("text", LONG)
def test_keys_of_impossible_versions(text: str) -> None:
    with pytest.raises(InvalidInput, match="is no model version"):
        ModelRef.parse(f"m/{text}")


def asking(timeout: str) -> oip.ModelInferRequest:
    made = oip.ModelInferRequest(model_name="odd-model")
    encode_inputs(made, {"x": np.array([[1, 2]], np.float32)})
    made.parameters["timeout"].string_param = timeout
    return made


async def test_numbers_in_requests(registry: Any, inference: Any) -> None:
    await registry.push_odd()
    for text in LONG:
        for call, request in (
            (inference.stub.RepositoryModelLoad, oip.RepositoryModelLoadRequest(model_name="odd-model")),
            (inference.stub.RepositoryModelUnload, oip.RepositoryModelUnloadRequest(model_name="odd-model")),
        ):
            request.parameters["version"].string_param = text
            with pytest.raises((InvalidInput, NotFound)):
                await call(request)
    await inference.load()
    for text in LONG[1:]:
        with pytest.raises(DeadlineExceeded, match="leaves no time"):
            await inference.stub.ModelInfer(asking(text))
    assert await inference.stub.ModelInfer(asking(str((1 << 64) - 1)))  # what some clients send for "no limit"


@pytest.mark.parametrize(
    ("name", "value"), [("parallel_loads", 0), ("predict_timeout_seconds", 0.0), ("load_timeout_seconds", float("nan"))]
)
def test_settings_that_would_refuse_every_request(name: str, value: float) -> None:
    with pytest.raises(InvalidInput, match=rf"InferenceSettings\.{name} must be"):
        InferenceSettings(**{name: value})  # type: ignore[arg-type]  # one value for settings of two types
