"""Every answer is checked: with the model's own values, by whichever name a peer gives its output."""

import json
from pathlib import Path

import numpy as np
import pytest
from benchmarks import server_requests
from benchmarks.models import Model
from benchmarks.server_requests import WrongAnswerError

from treadle import oip
from treadle.rpc.codec.tensors import decode_inputs, encode_outputs

ROWS = np.arange(60, dtype=np.float32).reshape(2, 30)
EXPECTED = {"label": np.array([1, 0]), "probability": np.array([[0.1, 0.9], [0.7, 0.3]])}
MODEL = Model("lr", Path("lr.joblib"), Path("lr"), ROWS, EXPECTED)


def answer(**outputs):
    response = oip.ModelInferResponse(model_name="lr")
    encode_outputs(response, {name: np.asarray(values) for name, values in outputs.items()}, raw=True)
    return response.SerializeToString()


def test_a_request_holds_the_first_rows_raw():
    request = oip.ModelInferRequest.FromString(server_requests.infer("127.0.0.1:1", MODEL, 2).body)
    assert request.model_name == "lr"
    np.testing.assert_array_equal(decode_inputs(request)["features"], ROWS)


def test_right_answers_pass():
    server_requests.infer("a:1", MODEL, 2).check(answer(label=[1, 0], probability=[[0.1, 0.9], [0.7, 0.3]]))
    server_requests.infer("a:1", MODEL, 1).check(answer(label=[1]))


def test_a_peer_may_call_its_only_output_what_it_likes():
    server_requests.infer("a:1", MODEL, 2).check(answer(output=[1, 0]))
    server_requests.infer("a:1", MODEL, 2).check(answer(predict=[[1], [0]]))


@pytest.mark.parametrize(
    "wrong",
    [{"label": [0, 0]}, {"label": [1]}, {"label": [1, 0], "probability": [[0.9, 0.1], [0.7, 0.3]]}, {}],
    ids=["another class", "too few", "another probability", "nothing"],
)
def test_wrong_answers_are_noticed(wrong):
    with pytest.raises(WrongAnswerError):
        server_requests.infer("a:1", MODEL, 2).check(answer(**wrong))


def test_json_answers_are_an_object_or_the_list_itself():
    ask = server_requests.json_predict("a:1", MODEL, 2)
    assert np.asarray(json.loads(ask.body)["features"]).shape == (2, 30)
    ask.check(b'{"outputs": [1, 0]}')
    ask.check(b"[1, 0]")
    with pytest.raises(WrongAnswerError):
        ask.check(b"[0, 1]")


def test_the_size_of_a_whole_answer_has_the_frame_of_grpc():
    assert server_requests.infer("a:1", MODEL, 1).with_answer_size(b"12345").answer_bytes == 10
    assert server_requests.json_predict("a:1", MODEL, 1).with_answer_size(b"12345").answer_bytes == 5
