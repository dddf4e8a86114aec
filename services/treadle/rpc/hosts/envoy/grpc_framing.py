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
HEAD = 5
"""Bytes before each message: whether it is compressed, and its length in four bytes."""
ACCEPTED_ENCODINGS = b"identity,deflate,gzip"

_UNITS = {"H": 3600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}
_INFLATE = {"gzip": 31, "deflate": 15}
# What is legible in grpc-message without escapes: printable ASCII but "%".
_LEGIBLE = "".join(map(chr, range(0x20, 0x7F))).replace("%", "")


def seconds_of(timeout: str) -> float | None:
    """The seconds of a grpc-timeout header such as "250m"; None for one that is malformed, which counts as absent."""
    unit = _UNITS.get(timeout[-1:])
    digits = timeout[:-1]
    if unit is None or not digits.isascii() or not digits.isdigit() or len(digits) > 8:
        return None
    return int(digits) * unit


def framed(message: bytes) -> bytes:
    """One message, uncompressed, as it travels."""
    return b"\0" + len(message).to_bytes(4, "big") + message


class Unframer:
    """Takes bytes as they come, gives whole messages. Errors are InvalidInput, StorageFull, Unimplemented."""

    def __init__(self, encoding: str, max_bytes: int) -> None:
        self._encoding = encoding
        self._max_bytes = max_bytes
        self._held = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The messages that `data` completes."""
        self._held += data
        held, at = self._held, 0
        while len(held) - at >= HEAD:
            length = int.from_bytes(held[at + 1 : at + HEAD], "big")
            check_size(length, self._max_bytes)
            end = at + HEAD + length
            if end > len(held):
                break
            yield decoded(bytes(held[at:end]), self._encoding, self._max_bytes)
            at = end
        del held[:at]

    @property
    def in_the_middle(self) -> bool:
        """Whether a message has begun that is not whole."""
        return bool(self._held)


def check_size(length: int, max_bytes: int) -> None:
    """StorageFull, in the words of grpcio, for a message over the limit."""
    if length > max_bytes:
        raise StorageFull(f"received message larger than max ({length} vs. {max_bytes})")


def decoded(frame: bytes, encoding: str, max_bytes: int) -> bytes:
    """The message in one whole frame; what a compressed one unpacks to is limited as well."""
    if not frame[0]:
        return frame[HEAD:]
    window = _INFLATE.get(encoding)
    if window is None:
        raise Unimplemented(f"messages are compressed with {encoding[:32]!r}; use gzip, deflate or identity")
    try:
        unpacking = zlib.decompressobj(window)
        message = unpacking.decompress(frame[HEAD:], max_bytes + 1)
    except zlib.error:
        raise InvalidInput("a compressed message cannot be unpacked") from None
    check_size(len(message), max_bytes)
    if not unpacking.eof:
        raise InvalidInput("a compressed message ends too early")
    return message


def unary_of(chunks: Sequence[bytes], encoding: str, max_bytes: int) -> bytes:
    """The one message of a call that sends one."""
    body = chunks[0] if len(chunks) == 1 else b"".join(chunks)
    if len(body) < HEAD or len(body) != HEAD + int.from_bytes(body[1:HEAD], "big"):
        raise InvalidInput("the request is not one whole message")
    return body[HEAD:] if not body[0] and len(body) - HEAD <= max_bytes else decoded(body, encoding, max_bytes)


def binary_value(value: bytes) -> bytes:
    """What a "-bin" header stands for; it may lack its padding. Empty if it is no base64."""
    try:
        return b64decode(value + b"=" * (-len(value) % 4))
    except binascii.Error:
        return b""


def headers_of(metadata: Metadata) -> Pairs:
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
        trailers.append((b"grpc-message", quote_from_bytes(message.encode("utf-8", "replace"), _LEGIBLE).encode()))
    trailers.extend(headers_of(metadata))
    return trailers
