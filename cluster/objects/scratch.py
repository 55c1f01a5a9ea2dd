"""A temporary file for what is encrypted where it is kept: on the disk, nobody can read it either."""

import io
import os
import tempfile
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer

_BLOCK_BYTES = 16
_BUFFER_BYTES = 1 << 16


def scratch_file() -> BinaryIO:
    """A temporary file without a name. Its key is in this process's memory only. No place may be written twice."""
    return io.BufferedRandom(_ScratchFile(), _BUFFER_BYTES)


class _ScratchFile(io.RawIOBase):
    """AES-256 in counter mode (NIST SP 800-38A, 6.5), so that any place is read without those before it."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115, closed by close()
        self._key = os.urandom(32)

    def fileno(self) -> int:
        return self._file.fileno()

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def readinto(self, buffer: "WriteableBuffer") -> int:
        place, view = self._file.tell(), memoryview(buffer).cast("B")
        stored = self._file.read(len(view)) or b""
        view[: len(stored)] = self._crypted(stored, place)
        return len(stored)

    def write(self, data: "ReadableBuffer") -> int:
        return self._file.write(self._crypted(bytes(data), self._file.tell()))

    def close(self) -> None:
        self._file.close()
        super().close()

    def _crypted(self, data: bytes, place: int) -> bytes:
        from cryptography.hazmat.primitives.ciphers import Cipher
        from cryptography.hazmat.primitives.ciphers.algorithms import AES
        from cryptography.hazmat.primitives.ciphers.modes import CTR

        counter = (place // _BLOCK_BYTES).to_bytes(_BLOCK_BYTES)
        stream = Cipher(AES(self._key), CTR(counter)).encryptor()
        stream.update(bytes(place % _BLOCK_BYTES))
        return stream.update(data)
