"""Tensors survive encoding and decoding, and malformed messages are refused."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from treadle import oip
from treadle.core.errors import InvalidInput
from treadle.rpc.codec.tensors import decode_inputs, decode_outputs, encode_inputs, encode_outputs

NUMERIC = st.sampled_from(
    [np.dtype(t) for t in ("?", *(f"i{n}" for n in (1, 2, 4, 8)), *(f"u{n}" for n in (1, 2, 4, 8)), "f2", "f4", "f8")]
)
SHAPES = hnp.array_shapes(min_dims=1, max_dims=3, max_side=4)
TEXT = st.text(max_size=5)


@given(hnp.arrays(NUMERIC, SHAPES), st.booleans())
def test_numbers_survive(array: Any, raw: bool) -> None:
    request = oip.ModelInferRequest()
    encode_inputs(request, {"x": array}, raw=raw)
    assert bool(request.raw_input_contents) == (raw or array.dtype == np.float16)
    decoded = decode_inputs(oip.ModelInferRequest.FromString(request.SerializeToString()))["x"]
    assert decoded.dtype == array.dtype
    np.testing.assert_array_equal(decoded, array)


@given(hnp.arrays(object, SHAPES, elements=TEXT), st.booleans())
def test_text_survives(array: Any, raw: bool) -> None:
    request, response = oip.ModelInferRequest(), oip.ModelInferResponse()
    encode_inputs(request, {"x": array}, raw=raw)
    np.testing.assert_array_equal(decode_inputs(request, {"x": "STRING"})["x"], array)
    assert request.inputs[0].datatype == "BYTES"
    encode_outputs(response, {"x": array}, raw=raw)
    np.testing.assert_array_equal(decode_outputs(response)["x"], array)


@pytest.mark.parametrize("raw", [True, False])
def test_bytes_and_timestamps_survive(raw: bool) -> None:
    blobs = np.array([b"", b"\xff\0", b"abc"], dtype=object)
    times = np.array(["2013-01-01T05:15", "1969-12-31", "NaT"], dtype="datetime64[us]")
    response = oip.ModelInferResponse()
    encode_outputs(response, {"b": blobs, "t": times}, raw=raw)
    decoded = decode_outputs(response)
    np.testing.assert_array_equal(decoded["b"], blobs)
    np.testing.assert_array_equal(decoded["t"], times)
    assert [output.datatype for output in response.outputs] == ["BYTES", "INT64"]


def test_raw_tensors_are_views() -> None:
    request = oip.ModelInferRequest()
    encode_inputs(request, {"x": np.ones((4, 3), np.float32)})
    array = decode_inputs(request)["x"]
    assert not array.flags.owndata
    assert not array.flags.writeable


@given(st.binary(max_size=64), st.lists(st.integers(-3, 1 << 62), max_size=4), st.sampled_from(["BYTES", "FP32"]))
def test_arbitrary_raw_bytes_are_decoded_or_refused(raw: bytes, shape: list[int], datatype: str) -> None:
    request = oip.ModelInferRequest(raw_input_contents=[raw])
    request.inputs.add(name="x", datatype=datatype, shape=shape)
    try:
        decoded = decode_inputs(request)["x"]
    except InvalidInput as error:  # any refusal is fine; any other error is not
        assert error.violations  # noqa: PT017
    else:
        assert list(decoded.shape) == shape


def _typed_request(datatype: str, shape: list[int], **contents: Any) -> oip.ModelInferRequest:
    request = oip.ModelInferRequest()
    request.inputs.add(name="x", datatype=datatype, shape=shape, contents=oip.InferTensorContents(**contents))
    return request


def _raw_request(datatype: str, shape: list[int], *raws: bytes) -> oip.ModelInferRequest:
    request = oip.ModelInferRequest(raw_input_contents=raws)
    request.inputs.add(name="x", datatype=datatype, shape=shape)
    return request


def _duplicate_name() -> oip.ModelInferRequest:
    request = _typed_request("FP32", [1], fp32_contents=[1])
    request.inputs.append(request.inputs[0])
    return request


@pytest.mark.parametrize(
    ("request_", "says"),
    [
        (_typed_request("FP32", [2], fp32_contents=[1]), "has 1 values; shape [2] is 2"),
        (_typed_request("FP32", [1], fp64_contents=[1]), "has fp64_contents; FP32 stands in fp32_contents"),
        (_typed_request("INT8", [1], int_contents=[128]), "outside the range of INT8"),
        (_typed_request("FP16", [1], fp32_contents=[1]), "no typed form"),
        (_typed_request("FP32", [1] * 40, fp32_contents=[1]), "40 axes"),
        (_duplicate_name(), "appears twice"),
        (_raw_request("BOOL", [1], b"\x02"), "other than 0 and 1"),
        (_raw_request("BYTES", [1], b"\x05\0\0\0ab"), "ends inside element 0"),
        (_raw_request("BYTES", [1], b"\x01\0\0\0ab"), "1 raw bytes after"),
        (_raw_request("FP32", [1], bytes(4), bytes(4)), "2 entries for 1 tensors"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_malformed_tensor_is_refused(request_: oip.ModelInferRequest, says: str) -> None:
    with pytest.raises(InvalidInput) as caught:  # compared as plain text below
        decode_inputs(request_)
    assert says in caught.value.message


def test_text_must_be_utf8() -> None:
    with pytest.raises(InvalidInput, match="element 1 is not valid UTF-8"):
        decode_inputs(_typed_request("BYTES", [2], bytes_contents=[b"ok", b"\xff"]), {"x": "STRING"})
