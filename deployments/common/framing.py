"""The framing of messages between a replica and its engine process: each after its length."""

import struct

from deployments.common.messages import FromEngine, ToEngine, encode

_HEADER = struct.Struct("<I")


def frame(message: ToEngine | FromEngine) -> bytes:
    """The message as bytes, after its length (4 bytes, little-endian)."""
    body = encode(message)
    return _HEADER.pack(len(body)) + body


class Unframer:
    """Splits a byte stream into message bodies."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """Adds received bytes; returns the bodies that are now complete."""
        self._buffer += data
        bodies, start = [], 0
        while len(self._buffer) - start >= _HEADER.size:
            (size,) = _HEADER.unpack_from(self._buffer, start)
            end = start + _HEADER.size + size
            if end > len(self._buffer):
                break
            bodies.append(bytes(self._buffer[start + _HEADER.size : end]))
            start = end
        del self._buffer[:start]
        return bodies
