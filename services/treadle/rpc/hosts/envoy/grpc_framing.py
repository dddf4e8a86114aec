"""gRPC over HTTP/2, as the specification "gRPC over HTTP2" has it, on the headers and bodies that ASGI hands over."""

import binascii
import zlib
from base64 import b64decode, b64encode
from collections.abc import Iterator, Sequence
from urllib.parse import quote_from_bytes

import grpc

from treadle.core.errors import InvalidInput, StorageFull, Unimplemented
from treadle.rpc.server.status import Metadata

Pairs = list[tuple[bytes, bytes]]

CONTENT_TYPE = b"application/grpc"
FRAME_HEADER_BYTES = 5
"""Bytes before each message: whether it is compressed, and its length in four bytes."""
ACCEPTED_ENCODINGS = b"identity,deflate,gzip"

_UNITS = {"H": 3600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}
_INFLATE = {"gzip": 31, "deflate": 15}
# What is legible in grpc-message without escapes: printable ASCII but "%".
_UNESCAPED = "".join(map(chr, range(0x20, 0x7F))).replace("%", "")


def parse_timeout(timeout: str) -> float | None:
    """The seconds of a grpc-timeout header such as "250m"; None for one that is malformed, which counts as absent."""
    unit = _UNITS.get(timeout[-1:])
    digits = timeout[:-1]
    if unit is None or not digits.isascii() or not digits.isdigit() or len(digits) > 8:
        return None
    return int(digits) * unit


def frame_message(message: bytes) -> bytes:
    """One message, uncompressed, as it travels."""
    return b"\0" + len(message).to_bytes(4, "big") + message


class Deframer:
    """Takes bytes as they come, gives whole messages. Errors are InvalidInput, StorageFull, Unimplemented."""

    def __init__(self, encoding: str, max_bytes: int) -> None:
        self._encoding = encoding
        self._max_bytes = max_bytes
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The messages that `data` completes."""
        self._buffer += data
        buffer, at = self._buffer, 0
        while len(buffer) - at >= FRAME_HEADER_BYTES:
            length = int.from_bytes(buffer[at + 1 : at + FRAME_HEADER_BYTES], "big")
            check_size(length, self._max_bytes)
            end = at + FRAME_HEADER_BYTES + length
            if end > len(buffer):
                break
            yield decode_frame(bytes(buffer[at:end]), self._encoding, self._max_bytes)
            at = end
        del buffer[:at]

    @property
    def has_partial_message(self) -> bool:
        """Whether a message has begun that is not whole."""
        return bool(self._buffer)


def check_size(length: int, max_bytes: int) -> None:
    """StorageFull, in the words of grpcio, for a message over the limit."""
    if length > max_bytes:
        raise StorageFull(f"received message larger than max ({length} vs. {max_bytes})")


def decode_frame(frame: bytes, encoding: str, max_bytes: int) -> bytes:
    """The message in one whole frame; what a compressed one unpacks to is limited as well."""
    if not frame[0]:
        return frame[FRAME_HEADER_BYTES:]
    window = _INFLATE.get(encoding)
    if window is None:
        raise Unimplemented(f"messages are compressed with {encoding[:32]!r}; use gzip, deflate or identity")
    try:
        inflate = zlib.decompressobj(window)
        message = inflate.decompress(frame[FRAME_HEADER_BYTES:], max_bytes + 1)
    except zlib.error:
        raise InvalidInput("a compressed message cannot be unpacked") from None
    check_size(len(message), max_bytes)
    if not inflate.eof:
        raise InvalidInput("a compressed message ends too early")
    return message


def decode_unary(chunks: Sequence[bytes], encoding: str, max_bytes: int) -> bytes:
    """The one message of a call that sends one."""
    body = chunks[0] if len(chunks) == 1 else b"".join(chunks)
    if len(body) < FRAME_HEADER_BYTES or len(body) != FRAME_HEADER_BYTES + int.from_bytes(
        body[1:FRAME_HEADER_BYTES], "big"
    ):
        raise InvalidInput("the request is not one whole message")
    return (
        body[FRAME_HEADER_BYTES:]
        if not body[0] and len(body) - FRAME_HEADER_BYTES <= max_bytes
        else decode_frame(body, encoding, max_bytes)
    )


def decode_binary_header(value: bytes) -> bytes:
    """What a "-bin" header stands for; it may lack its padding. Empty if it is no base64."""
    try:
        return b64decode(value + b"=" * (-len(value) % 4))
    except binascii.Error:
        return b""


def metadata_to_headers(metadata: Metadata) -> Pairs:
    """Metadata as headers or trailers."""
    pairs: Pairs = []
    for key, value in metadata:
        if key.endswith("-bin"):
            raw = value.encode() if isinstance(value, str) else value
            pairs.append((key.encode(), b64encode(raw).rstrip(b"=")))
        else:
            pairs.append((key.encode(), value.encode() if isinstance(value, str) else value))
    return pairs


def status_trailers(code: grpc.StatusCode, message: str, metadata: Metadata) -> Pairs:
    """How a call ended."""
    trailers: Pairs = [(b"grpc-status", str(code.value[0]).encode())]
    if message:
        trailers.append((b"grpc-message", quote_from_bytes(message.encode("utf-8", "replace"), _UNESCAPED).encode()))
    trailers.extend(metadata_to_headers(metadata))
    return trailers
