"""Protobuf's wire format, for messages that are serialized faster from whole arrays than field by field."""


def varint(number: int) -> bytes:
    """The encoding of a whole number ≥ 0: seven bits a byte, the lowest first."""
    parts = bytearray()
    while number > 0x7F:
        parts.append(number & 0x7F | 0x80)
        number >>= 7
    parts.append(number)
    return bytes(parts)


_SHORT_VARINTS = [varint(number) for number in range(1024)]


def field(number: int, payload: bytes) -> bytes:
    """The encoding of a length-delimited field: tag, length, payload. `number` is below 128."""
    size = len(payload)
    return _SHORT_VARINTS[number << 3 | 2] + (_SHORT_VARINTS[size] if size < 1024 else varint(size)) + payload
