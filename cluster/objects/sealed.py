"""Objects that are encrypted, chunk by chunk, so that any part of a large one is read without the rest.

Whether an object is encrypted is said by its name, which Redis holds: nobody who may write into the folder or the
bucket can put a plain object in its place. An encrypted object is a row of sealed values (cluster.records.sealing) of
64 KiB each; the last one may be shorter. Each is bound to the object's name, to its number, and to whether it is the
last one. So a chunk that was changed, moved to another place or object, or cut off at the end is an error. A name is
never used twice: a chunk of an older object of the same name does not exist.
"""

from collections.abc import Iterable, Iterator

from cluster.objects.store import DamagedObject, ObjectStore
from cluster.records.sealing import MARK, OVERHEAD, Unreadable, seal, vault

_MARK = "-sealed"
CHUNK_BYTES = 1 << 16
"""Of what is encrypted at a time. Another size would make old objects unreadable."""
_STORED_BYTES = CHUNK_BYTES + OVERHEAD


def new_name(name: str) -> str:
    """The name for a new object: with encryption, one that says so."""
    return f"{name}{_MARK}" if vault() is not None else name


def is_sealed(name: str) -> bool:
    """Whether the object with this name is encrypted."""
    return name.endswith(_MARK)


class SealedStore:
    """Encrypts what has a name for it, and decrypts it; sizes and places are those of the bytes as they were given."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store

    @property
    def shared(self) -> bool:
        """As ObjectStore says."""
        return self._store.shared

    def write(self, name: str, content: Iterable[bytes]) -> int:
        """As ObjectStore says. Raises Unreadable for a name of an encrypted object while encryption is off."""
        if not is_sealed(name):
            return self._store.write(name, content)
        if vault() is None:
            raise Unreadable.record(f"object {name}")
        size = 0

        def sealed() -> Iterator[bytes]:
            nonlocal size
            for number, (chunk, last) in enumerate(_chunks(content)):
                size += len(chunk)
                yield seal(chunk, _place(name, number, last=last))

        self._store.write(name, sealed())
        return size

    def read(self, name: str, start: int, end: int) -> bytes:
        """As ObjectStore says. Raises Unreadable where the key is not there, DamagedObject."""
        if not is_sealed(name):
            return self._store.read(name, start, end)
        if end <= start:
            return b""
        first, stop = start // CHUNK_BYTES, (end - 1) // CHUNK_BYTES + 1
        stored = self._store.read(name, first * _STORED_BYTES, stop * _STORED_BYTES)
        chunks, last = list[bytes](), False
        for number in range(first, stop):
            place = (number - first) * _STORED_BYTES
            chunk, last = _unsealed(stored[place : place + _STORED_BYTES], name, number)
            chunks.append(chunk)
            if last:
                break
        if last and len(stored) > (len(chunks) - 1) * _STORED_BYTES + len(chunks[-1]) + OVERHEAD:
            raise DamagedObject(f"object {name} goes on after its end")
        return b"".join(chunks)[start - first * CHUNK_BYTES : end - first * CHUNK_BYTES]

    def remove(self, name: str) -> None:
        """As ObjectStore says."""
        self._store.remove(name)

    def names(self, prefix: str) -> list[str]:
        """As ObjectStore says."""
        return self._store.names(prefix)

    def is_current(self, name: str) -> bool:
        """Whether an object is encrypted with the key that encrypts now. Raises FileNotFoundError, OSError."""
        own = vault()
        return is_sealed(name) and own is not None and own.is_current(self._store.read(name, 0, OVERHEAD))


def _chunks(content: Iterable[bytes]) -> Iterator[tuple[bytes, bool]]:
    """The content in chunks, each with whether it is the last one; that is empty only where there is no content."""
    rest = bytearray()
    for block in content:
        rest += block
        while len(rest) > CHUNK_BYTES:
            yield bytes(rest[:CHUNK_BYTES]), False
            del rest[:CHUNK_BYTES]
    yield bytes(rest), True


def _unsealed(stored: bytes, name: str, number: int) -> tuple[bytes, bool]:
    """A chunk, and whether it is the last one. Raises Unreadable, DamagedObject."""
    if not stored:
        raise DamagedObject(f"object {name} is cut off before chunk {number}")
    if not stored.startswith(MARK):
        raise DamagedObject(f"chunk {number} of object {name} is not encrypted, though it was")
    own = vault()
    if own is None or not own.has_key_of(stored):
        raise Unreadable.record(f"object {name}")
    for last in (False, True):
        if (len(stored) == _STORED_BYTES or last) and (
            chunk := own.unseal(stored, _place(name, number, last=last))
        ) is not None:
            return chunk, last
    raise DamagedObject(f"chunk {number} of object {name} was changed, moved or cut off")


def _place(name: str, number: int, *, last: bool) -> str:
    return f"object {name} {number}{' end' if last else ''}"
