"""The response to a request does not depend on concurrent requests: laws on real messages, through the servicer."""

import asyncio
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from treadle import oip
from treadle.core.errors import DeadlineExceeded, InvalidInput, Overloaded, TreadleError
from treadle.plugins.backend import LoadedModel
from treadle.plugins.tensor_spec import TensorSpec
from treadle.plugins.tensors import Signature, Tensors
from treadle.rpc.codec.tensors import decode_inputs, decode_outputs, encode_inputs

from ..local import served

BAD, UNWANTED, GATE = -1, -2, -3
"""Row values at which the model raises, refuses its inputs, and waits for the gate."""

NUMBERS = Signature(
    (TensorSpec("number", "INT64", (-1,)), TensorSpec("x", "FP32", (-1, 2)), TensorSpec("when", "TIMESTAMP", (-1,))),
    (TensorSpec("sum", "FP32", (-1,)), TensorSpec("pair", "FP64", (-1, 2)), TensorSpec("number", "INT64", (-1,))),
)
"""A signature with rows of a fixed size, whose inputs stay bytes until they are joined."""
EVERYTHING = Signature(
    (
        TensorSpec("number", "INT64", (-1,)),
        TensorSpec("text", "STRING", (-1,)),
        TensorSpec("blob", "BYTES", (-1,)),
        TensorSpec("yes", "BOOL", (-1, 3)),
        TensorSpec("half", "FP16", (-1,)),
        TensorSpec("when", "TIMESTAMP", (-1,)),
        TensorSpec("free", "FP64", (-1, -1), allow_nan=True),
    ),
    (
        TensorSpec("text", "STRING", (-1,)),
        TensorSpec("blob", "BYTES", (-1,)),
        TensorSpec("no", "BOOL", (-1, 3)),
        TensorSpec("half", "FP16", (-1,)),
        TensorSpec("when", "TIMESTAMP", (-1,)),
        TensorSpec("free", "FP64", (-1, -1)),
        TensorSpec("number", "INT64", (-1,)),
    ),
)
"""A signature with one tensor of each kind, one of variable width: requests of different widths share no batch."""
SIGNATURES = {"numbers": NUMBERS, "everything": EVERYTHING}


class Rowwise(LoadedModel):
    """Returns a function of each row, and records the computed rows."""

    bounded = True
    answers: ClassVar[Mapping[str, Any]] = {
        "text": lambda i: np.array([text + "!" for text in i["text"]], object),
        "blob": lambda i: i["blob"],
        "no": lambda i: ~i["yes"],
        "half": lambda i: i["half"] * np.float16(2),
        "when": lambda i: i["when"] + np.timedelta64(1, "us"),
        "free": lambda i: i["free"][:, ::-1],
        "sum": lambda i: i["x"].sum(axis=1),
        "pair": lambda i: i["x"].astype(np.float64) * 3,
        "number": lambda i: i["number"],
    }

    def __init__(self, signature: Signature, *, bounded: bool) -> None:
        self.bounded = bounded  # type: ignore[misc]  # of the class, but this test is about both
        self.gate = threading.Event()
        self.gate.set()
        self.at_the_gate = threading.Event()
        self.batches: list[list[int]] = []
        self._names = [spec.name for spec in signature.outputs]

    def predict(self, inputs: Tensors) -> Tensors:
        numbers = inputs["number"].tolist()
        if GATE in numbers:
            self.at_the_gate.set()
            self.gate.wait(20)
        self.batches.append(numbers)
        if BAD in numbers:
            raise ValueError("a message that holds a value: 17.25")
        if UNWANTED in numbers:
            raise InvalidInput("the model does not take such rows")
        return {name: self.answers[name](inputs) for name in self._names}


@dataclass(frozen=True)
class Ask:
    """One request of a plan."""

    message: oip.ModelInferRequest
    numbers: list[int]
    fate: str
    """"stay", "leave" (its caller is cancelled), or "late" (its deadline passes in the queue)."""


def _tensor(draw: Any, spec: TensorSpec, rows: int, width: int) -> Any:
    shape = (rows, *(width if size == -1 else size for size in spec.shape[1:]))
    count = int(np.prod(shape))
    values: dict[str, Any] = {
        "STRING": st.text(max_size=4),
        "BYTES": st.binary(max_size=4),
        "BOOL": st.booleans(),
        "TIMESTAMP": st.integers(0, 1 << 50),
        "FP16": st.integers(-8, 8),
        "FP32": st.integers(-1000, 1000),
        "FP64": st.sampled_from([0.5, -3.25, float("nan")] if spec.allow_nan else [0.5, -3.25]),
    }
    elements = draw(st.lists(values[spec.dtype], min_size=count, max_size=count))
    if spec.dtype in {"STRING", "BYTES"}:
        array = np.empty(count, object)
        array[:] = elements
        return array.reshape(shape)
    kinds = {"BOOL": "?", "TIMESTAMP": "datetime64[us]", "FP16": "<f2", "FP32": "<f4", "FP64": "<f8"}
    return np.array(elements).astype(kinds[spec.dtype]).reshape(shape)


@st.composite
def asks(draw: Any, signature: Signature, first: int) -> Ask:
    """A request whose rows are numbered from `first`. Some have a bad row, some are invalid messages."""
    rows, width = draw(st.integers(1, 7)), draw(st.integers(1, 2))
    trouble = draw(st.sampled_from(["none"] * 6 + ["bad", "unwanted", "nan", "parameter", "output"]))
    numbers = [first + row for row in range(rows)]
    if trouble in {"bad", "unwanted"}:
        numbers[draw(st.integers(0, rows - 1))] = BAD if trouble == "bad" else UNWANTED
    arrays = {
        spec.name: np.array(numbers) if spec.name == "number" else _tensor(draw, spec, rows, width)
        for spec in signature.inputs
    }
    if trouble == "nan":
        arrays["half" if "half" in arrays else "x"][-1] = np.nan
    message = oip.ModelInferRequest(model_name="m", id=draw(st.sampled_from(["", f"id-{first}"])))
    encode_inputs(message, arrays, raw=draw(st.booleans()))
    names = [spec.name for spec in signature.outputs]
    for name in draw(st.lists(st.sampled_from(names), unique=True, max_size=3)) + ["nobody"] * (trouble == "output"):
        message.outputs.add(name=name)
    if draw(st.booleans()):
        message.parameters["timeout"].int64_param = 30_000_000
    if trouble == "parameter":
        message.parameters["what_is_this"].int64_param = 1
    return Ask(message, numbers, draw(st.sampled_from(["stay"] * 5 + ["leave", "late"])))


@st.composite
def plans(draw: Any) -> tuple[str, list[Ask], list[int]]:
    """Requests for one signature, and the number of loop iterations between them."""
    name = draw(st.sampled_from(sorted(SIGNATURES)))
    count = draw(st.integers(0, 12))
    made = [draw(asks(SIGNATURES[name], 1000 * position)) for position in range(count)]
    return name, made, [draw(st.integers(0, 3)) for _ in made]


async def handled(servicer: Any, message: oip.ModelInferRequest) -> oip.ModelInferResponse | TreadleError:
    """The response or error to a serialized copy of the request."""
    try:
        response = await servicer.ModelInfer(oip.ModelInferRequest.FromString(message.SerializeToString()), None)
    except TreadleError as error:
        return error
    return oip.ModelInferResponse.FromString(response.SerializeToString())


def gate_keeper(signature: Signature) -> oip.ModelInferRequest:
    """A request that keeps the model busy until the gate opens."""
    shapes = {spec.name: (1, *(max(size, 1) for size in spec.shape[1:])) for spec in signature.inputs}
    kinds = {"BOOL": "?", "TIMESTAMP": "datetime64[us]", "FP16": "<f2", "FP32": "<f4", "FP64": "<f8", "INT64": "<i8"}
    arrays: dict[str, Any] = {}
    for spec in signature.inputs:
        if spec.dtype in {"STRING", "BYTES"}:
            arrays[spec.name] = np.array([b"" if spec.dtype == "BYTES" else ""], object)
        else:
            arrays[spec.name] = np.zeros(shapes[spec.name], kinds[spec.dtype])
    arrays["number"][:] = GATE
    message = oip.ModelInferRequest(model_name="m")
    encode_inputs(message, arrays)
    return message


@settings(max_examples=150, deadline=None)
@given(plans(), st.integers(1, 9), st.booleans(), st.booleans())
def test_batched_is_unbatched(plan: tuple[str, list[Ask], list[int]], max_rows: int, busy: bool, bounded: bool) -> None:
    asyncio.run(_law(*plan, max_rows=max_rows, busy=busy, bounded=bounded))


async def _law(
    name: str, made: Sequence[Ask], pauses: Sequence[int], *, max_rows: int, busy: bool, bounded: bool
) -> None:
    signature = SIGNATURES[name]
    alone = Rowwise(signature, bounded=False)
    async with served(alone, signature) as servicer:
        expected = [await handled(servicer, ask.message) for ask in made]
    model = Rowwise(signature, bounded=bounded)
    async with served(model, signature, max_rows=max_rows) as servicer:
        if busy:
            model.gate.clear()
            first = asyncio.create_task(handled(servicer, gate_keeper(signature)))
            await asyncio.to_thread(model.at_the_gate.wait)
        tasks = []
        for ask, pause in zip(made, pauses, strict=True):
            if ask.fate == "late":
                ask.message.parameters["timeout"].int64_param = 1
            tasks.append(asyncio.create_task(handled(servicer, ask.message)))
            for _ in range(pause):
                await asyncio.sleep(0)
        await asyncio.sleep(0)  # all have been admitted
        for ask, task in zip(made, tasks, strict=True):
            if ask.fate == "leave":
                task.cancel()
        if busy:
            model.gate.set()
            assert isinstance(await first, oip.ModelInferResponse)
        got = await asyncio.gather(*tasks, return_exceptions=True)
    computed = {number for batch in model.batches for number in batch if number >= 0}
    for ask, want, have in zip(made, expected, got, strict=True):
        _as_expected(ask, want, have, computed)
    assert max(map(len, model.batches), default=0) <= max_rows


def _as_expected(ask: Ask, want: Any, have: Any, computed: set[int]) -> None:
    if ask.fate == "leave" and isinstance(have, asyncio.CancelledError):
        return
    if ask.fate == "late":
        malformed = isinstance(want, InvalidInput) and isinstance(have, InvalidInput)
        assert malformed or isinstance(have, DeadlineExceeded | Overloaded)
        assert computed.isdisjoint(ask.numbers)
    else:
        _same(want, have)


def _same(want: Any, have: Any) -> None:
    """Asserts equal responses, byte for byte, or equal errors."""
    if isinstance(want, TreadleError):
        assert type(have) is type(want)
        assert "17.25" not in have.message
    else:
        assert isinstance(have, oip.ModelInferResponse)
        assert have.SerializeToString(deterministic=True) == want.SerializeToString(deterministic=True)


@pytest.mark.parametrize("name", SIGNATURES)
@pytest.mark.parametrize("bounded", [True, False])
async def test_a_response_holds_what_the_model_computes_for_the_request_alone(name: str, bounded: bool) -> None:
    """The other laws compare two responses of the servicer; this one compares with the model."""
    signature = SIGNATURES[name]
    model = Rowwise(signature, bounded=bounded)
    message = gate_keeper(signature)
    for _ in range(20):  # in every way: read in full, recognised, on the thread, on the loop
        async with served(model, signature) as servicer:
            answers = await asyncio.gather(*(handled(servicer, message) for _ in range(12)))
        restored = {spec.name: spec.dtype for spec in signature.inputs}
        wanted = model.predict(decode_inputs(message, restored))
        for answer in answers:
            assert isinstance(answer, oip.ModelInferResponse)
            outputs = decode_outputs(answer)
            assert [*outputs] == [*wanted]
            for output, array in wanted.items():
                np.testing.assert_array_equal(outputs[output], array)


# Reports of others, replayed: what their users did, and what must come of it here.


def _numbers(numbers: Sequence[int], *, outputs: Sequence[str] = ()) -> oip.ModelInferRequest:
    rows = np.array(numbers, np.float32)
    message = oip.ModelInferRequest(model_name="m")
    arrays = {"number": np.array(numbers), "x": np.stack([rows, rows], axis=1), "when": rows.astype("datetime64[us]")}
    encode_inputs(message, arrays)
    for name in outputs:
        message.outputs.add(name=name)
    return message


async def _together(
    model: Rowwise, signature: Signature, messages: Sequence[oip.ModelInferRequest], **limits: Any
) -> list[Any]:
    """The responses to requests that are queued together while the model is busy."""
    model.gate.clear()
    async with served(model, signature, **limits) as servicer:
        first = asyncio.create_task(handled(servicer, gate_keeper(signature)))
        await asyncio.to_thread(model.at_the_gate.wait)
        tasks = [asyncio.create_task(handled(servicer, message)) for message in messages]
        await asyncio.sleep(0)
        model.gate.set()
        await first
        return list(await asyncio.gather(*tasks))


async def test_three_parallel_requests_get_one_prediction_each() -> None:
    """MLServer#1306: three at once, with the same values; one got three predictions, the two others none."""
    model = Rowwise(NUMBERS, bounded=False)
    answers = await _together(model, NUMBERS, [_numbers([7])] * 3)
    assert model.batches[1:] == [[7, 7, 7]]
    for answer in answers:
        assert [*answer.outputs[0].shape] == [1]
        assert decode_outputs(answer)["sum"].tolist() == [14]


def _wrong_shapes() -> Iterator[oip.ModelInferRequest]:
    for text in ('{"name": "Foo Bar"}', '{"name": "Foo Bar 2"}'):
        message = oip.ModelInferRequest(model_name="m")
        message.inputs.add(name="text", datatype="BYTES", shape=[len(text)]).contents.bytes_contents.append(
            text.encode()
        )
        yield message


async def test_a_shape_that_does_not_match_the_values_is_refused() -> None:
    """MLServer#1718: one text a request, its shape given as the length of the text; the answers were cut elsewhere."""
    signature = Signature((TensorSpec("text", "STRING", (-1,)),), (TensorSpec("text", "STRING", (-1,)),))

    class Echo(LoadedModel):
        def predict(self, inputs: Tensors) -> Tensors:
            return inputs

    async with served(Echo(), signature) as servicer:
        for answer in await asyncio.gather(*(handled(servicer, message) for message in _wrong_shapes())):
            assert isinstance(answer, InvalidInput)
            assert "has 1 values; shape [" in answer.message


async def test_each_request_gets_its_selected_outputs() -> None:
    """MLServer#514: with batching on, every caller got the model's first output, whatever it had asked for."""
    model = Rowwise(NUMBERS, bounded=False)
    wanted: list[list[str]] = [["pair"], ["number", "sum"], []]
    answers = await _together(model, NUMBERS, [_numbers([n], outputs=names) for n, names in enumerate(wanted)])
    assert model.batches[1:] == [[0, 1, 2]]
    names = [[output.name for output in answer.outputs] for answer in answers]
    assert names == [["pair"], ["number", "sum"], ["sum", "pair", "number"]]
    assert decode_outputs(answers[0])["pair"].tolist() == [[0, 0]]
    assert decode_outputs(answers[1])["sum"].tolist() == [2]


async def test_one_large_request_is_one_batch_and_waits_for_no_other() -> None:
    """MLServer#1826: one request of a hundred rows took twice as long without batching as with it."""
    model = Rowwise(NUMBERS, bounded=False)
    async with served(model, NUMBERS) as servicer:
        answer = await handled(servicer, _numbers(range(100)))
    assert isinstance(answer, oip.ModelInferResponse)
    assert model.batches == [[*range(100)]]


async def test_batches_are_limited_by_rows_not_by_requests() -> None:
    """BentoML#3859: requests of 32 rows, at most 32 to a batch; eleven requests ran together, and memory ran out."""
    model = Rowwise(NUMBERS, bounded=False)
    messages = [_numbers(range(32 * i, 32 * i + 32)) for i in range(11)]
    answers = await _together(model, NUMBERS, messages, max_rows=32)
    assert [len(batch) for batch in model.batches[1:]] == [32] * 11
    assert [decode_outputs(answer)["number"].tolist() for answer in answers] == [
        [*range(32 * i, 32 * i + 32)] for i in range(11)
    ]
