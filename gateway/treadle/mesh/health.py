"""A client of `grpc.health.v1.Health/Check` over a plain socket, without grpc.

The supervisor and `treadle status` check six processes. Importing grpc for that takes 25 MB of resident memory and a
quarter of a second; the unary call itself is a few HTTP/2 frames. Response headers are not decoded: only a DATA frame
with the message counts as a response.
"""

import asyncio
import contextlib
import struct
from enum import StrEnum

_DATA, _HEADERS, _RST_STREAM, _GOAWAY = 0, 1, 3, 7
_END_STREAM, _END_HEADERS, _PADDED = 0x1, 0x4, 0x8
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_STREAM = 1
_MAX_FRAME_BYTES = 1 << 14


class HealthStatus(StrEnum):
    """The health of a service."""

    SERVING = "SERVING"
    NOT_SERVING = "NOT_SERVING"
    UNREACHABLE = "UNREACHABLE"
    """No server listens, or it is no gRPC server, or it did not respond in time."""


async def check(address: str, service: str = "", timeout_seconds: float = 2.0) -> HealthStatus:
    """The health of `service` ("" is the whole process) at "host:port"; UNREACHABLE for any network error."""
    try:
        async with asyncio.timeout(timeout_seconds):
            return await _call_check(address, service)
    except (OSError, TimeoutError, asyncio.IncompleteReadError, ValueError):
        return HealthStatus.UNREACHABLE


async def listens(address: str, timeout_seconds: float = 1.0) -> bool:
    """Whether a server accepts connections at "host:port"."""
    host, _, port = address.rpartition(":")
    try:
        async with asyncio.timeout(timeout_seconds):
            _, writer = await asyncio.open_connection(host, int(port))
    except (OSError, TimeoutError, ValueError):
        return False
    await _close(writer)
    return True


async def _call_check(address: str, service: str) -> HealthStatus:
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        writer.write(_PREFACE + _frame(4, 0, 0) + _request(address, service))
        await writer.drain()
        return await _read_status(reader)
    finally:
        await _close(writer)


async def _close(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(OSError):  # the peer has closed the connection already
        await writer.wait_closed()


def _request(address: str, service: str) -> bytes:
    headers = {
        ":method": "POST",
        ":scheme": "http",
        ":path": "/grpc.health.v1.Health/Check",
        ":authority": address,
        "content-type": "application/grpc",
        "te": "trailers",
    }
    block = b"".join(
        b"\x00" + _hpack_string(name) + _hpack_string(value) for name, value in headers.items()
    )  # literal, not indexed
    name = service.encode()
    message = b"\x0a" + bytes([len(name)]) + name if name else b""
    body = b"\x00" + struct.pack(">I", len(message)) + message
    return _frame(_HEADERS, _END_HEADERS, _STREAM, block) + _frame(_DATA, _END_STREAM, _STREAM, body)


def _hpack_string(text: str) -> bytes:
    """An HPACK string without Huffman coding; one length byte, so 126 characters at most."""
    raw = text.encode()
    if len(raw) > 126:
        raise ValueError(f"{text[:40]}… is too long for a health check")
    return bytes([len(raw)]) + raw


def _frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


async def _read_status(reader: asyncio.StreamReader) -> HealthStatus:
    """Reads frames until the response message is complete, or until the call ends without one (an error status)."""
    body = b""
    while True:
        length, kind, flags, stream = _frame_header(await reader.readexactly(9))
        payload = await reader.readexactly(length)
        if kind == _GOAWAY or (kind == _RST_STREAM and stream == _STREAM):
            return HealthStatus.UNREACHABLE
        if stream != _STREAM:
            continue
        if kind == _DATA:
            body += payload[1 : -payload[0] or None] if flags & _PADDED else payload
        if flags & _END_STREAM or (len(body) >= 5 and len(body) >= 5 + struct.unpack(">I", body[1:5])[0]):
            # HealthCheckResponse{status: SERVING} is the two bytes 08 01; an error has no body.
            return HealthStatus.SERVING if body[5:] == b"\x08\x01" else HealthStatus.NOT_SERVING


def _frame_header(raw: bytes) -> tuple[int, int, int, int]:
    length = int.from_bytes(raw[:3], "big")
    if length > _MAX_FRAME_BYTES:
        raise ValueError("not an HTTP/2 peer")
    return length, raw[3], raw[4], int.from_bytes(raw[5:], "big") & 0x7FFFFFFF
