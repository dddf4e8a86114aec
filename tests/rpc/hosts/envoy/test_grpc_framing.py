"""gRPC on HTTP as the Envoy host reads and writes it."""

import zlib
from contextlib import suppress

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from treadle.core.errors import InvalidInput, StorageFull, Unimplemented
from treadle.rpc.hosts.envoy import grpc_framing


@given(st.lists(st.binary(max_size=40), max_size=6), st.integers(1, 17))
def test_messages_come_out_as_they_went_in_however_they_are_cut(messages, size):
    stream = b"".join(grpc_framing.frame_message(message) for message in messages)
    deframer = grpc_framing.Deframer("identity", 100)
    parts = [stream[at : at + size] for at in range(0, len(stream), size)]
    assert [message for part in parts for message in deframer.feed(part)] == messages
    assert not deframer.has_partial_message


@given(st.binary(max_size=300), st.integers(0, 200))
def test_a_compressed_message_is_itself_again_or_too_large(message, limit):
    packed = zlib.compress(message)
    frame = b"\1" + len(packed).to_bytes(4, "big") + packed
    if len(message) > limit:
        with pytest.raises(StorageFull, match="larger than max"):
            grpc_framing.decode_frame(frame, "deflate", limit)
    else:
        assert grpc_framing.decode_frame(frame, "deflate", limit) == message


@given(st.binary(max_size=60))
def test_no_bytes_crash_the_unframer(data):
    deframer = grpc_framing.Deframer("gzip", 50)
    with suppress(InvalidInput, StorageFull):
        list(deframer.feed(data))


@pytest.mark.parametrize("body", [b"", b"\0\0\0\0", b"\0\0\0\0\2x", b"\0\0\0\0\0more"])
def test_what_is_not_one_whole_message_is_refused(body):
    with pytest.raises(InvalidInput, match="not one whole message"):
        grpc_framing.decode_unary([body], "identity", 100)


def test_an_unknown_compression_is_unimplemented():
    with pytest.raises(Unimplemented, match="'br'"):
        grpc_framing.decode_frame(b"\1\0\0\0\1x", "br", 100)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("2H", 7200), ("3M", 180), ("5S", 5), ("250m", 0.25), ("1u", 1e-6), ("1n", 1e-9)]
    + [(bad, None) for bad in ("", "5", "S", "-1S", "1.5S", "123456789S", "٣S", "5x")],
)
def test_timeouts(text, seconds):
    assert grpc_framing.parse_timeout(text) == (None if seconds is None else pytest.approx(seconds))


@given(st.text(max_size=30))
def test_messages_of_a_status_are_legible_ascii_and_come_back(text):
    (code, message) = grpc_framing.status_trailers(grpc.StatusCode.NOT_FOUND, text or "x", ())
    assert code == (b"grpc-status", b"5")
    assert all(0x20 <= byte < 0x7F for byte in message[1])


@given(st.binary(max_size=40))
def test_bytes_in_metadata_travel_as_base64_with_or_without_padding(value):
    ((name, sent),) = grpc_framing.metadata_to_headers([("a-bin", value)])
    assert (name, grpc_framing.decode_binary_header(sent)) == (b"a-bin", value)
