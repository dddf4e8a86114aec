"""What h2load prints becomes figures, and what it cannot see is found in the bytes."""

import numpy as np
import pytest
from benchmarks import load
from benchmarks.server_requests import GRPC_HEADERS, JSON_HEADERS, ServerRequest

TOLD = """starting benchmark...
spawning thread #0: 8 total client(s). Timing-based test with 500.00ms of warm-up time and 3000.00ms of main duration.
Warm-up started for thread #0.
progress: 100% of clients started
Warm-up phase is over for thread #0.
Main benchmark duration is started for thread #0.

finished in {finished}, 9000.00 req/s, 1.20MB/s
requests: 27000 total, 27064 started, 27000 done, {succeeded} succeeded, {failed} failed, 0 errored, 0 timeout
status codes: {succeeded} 2xx, 0 3xx, 0 4xx, {failed} 5xx
traffic: 3.50MB (3672000) total, 632.81KB (648000) headers (space savings 88.12%), 2.57MB ({data}) data
                     min         max         mean         sd        +/- sd
time for request:      512us     24.10ms      6.90ms      1.20ms    80.00%
"""
NONE = np.zeros(0)


def told(finished="3.00s", succeeded=27_000, failed=0, data=27_000 * 100):
    return TOLD.format(finished=finished, succeeded=succeeded, failed=failed, data=data)


def test_a_run_is_its_requests_in_its_time():
    done = load.parse(told(), np.array([1.0, 2.0, 3.0]), answer_bytes=100)
    assert (done.requests, done.failed, done.requests_per_second) == (27_000, 0, 9_000.0)
    assert done.p50_ms == 2.0


@pytest.mark.parametrize(("finished", "seconds"), [("3.00s", 3.0), ("500.00ms", 0.5), ("1.5m", 90.0)])
def test_times_have_units(finished, seconds):
    assert load.parse(told(finished), NONE, 100).seconds == pytest.approx(seconds)


def test_statuses_that_are_no_success_have_failed_and_do_not_count_as_speed():
    done = load.parse(told(succeeded=24_000, failed=3_000, data=24_000 * 100), NONE, answer_bytes=100)
    assert done.failed == 3_000
    assert done.requests_per_second == 8_000.0


def test_answers_without_their_message_have_failed_whatever_their_http_status_says():
    # gRPC errors have HTTP status 200 and no message.
    done = load.parse(told(data=18_000 * 100), NONE, answer_bytes=100)
    assert done.failed == 9_000


def test_answers_may_differ_a_little_in_size():
    assert load.parse(told(data=27_000 * 98), NONE, answer_bytes=100).failed == 0


def test_output_that_is_no_result_is_said():
    with pytest.raises(load.LoadError, match="no result: cannot connect"):
        load.parse("cannot connect", NONE, 0)


def test_percentiles_come_from_the_log_of_every_request(tmp_path):
    log = tmp_path / "log"
    log.write_text("1764061200000000\t200\t1500\n1764061200000100\t200\t2500\n")
    assert list(load.durations(log)) == [1.5, 2.5]


def test_a_run_without_any_request_has_no_durations(tmp_path):
    assert len(load.durations(tmp_path / "none")) == 0


def ask(*, grpc):
    headers = GRPC_HEADERS if grpc else JSON_HEADERS
    return ServerRequest("127.0.0.1:1", "/p", b"body", check=lambda answer: None, grpc=grpc, headers=headers)


def test_grpc_requests_have_a_frame_before_the_message():
    assert ask(grpc=True).wire_body == b"\x00\x00\x00\x00\x04body"
    assert ask(grpc=False).wire_body == b"body"


@pytest.mark.parametrize(("concurrency", "clients", "streams"), [(1, 1, 1), (16, 2, 8), (64, 8, 8)])
def test_grpc_shares_connections(concurrency, clients, streams, tmp_path):
    command = load._command(ask(grpc=True), concurrency, 3.0, tmp_path)
    assert command[command.index("-c") + 1] == str(clients)
    assert command[command.index("-m") + 1] == str(streams)


def test_http_has_a_connection_for_each_request_in_flight(tmp_path):
    command = load._command(ask(grpc=False), 64, 3.0, tmp_path)
    assert "--h1" in command
    assert command[command.index("-c") + 1] == "64"
