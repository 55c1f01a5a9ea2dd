"""What a store of objects does, and which one the settings ask for."""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from cluster.objects.folder import FolderStore
from cluster.settings import Settings

if TYPE_CHECKING:
    from cluster.objects.sealed import SealedStore

_BLOCK_BYTES = 1 << 20
_FOLDER = "batches"


class DamagedObject(OSError):
    """An object was changed or cut off where it is stored: no later attempt can read it."""


class ObjectStore(Protocol):
    """Objects by name. Names are Dray's own: letters, digits, `_`, `-`, and one `/` at most. All calls block."""

    @property
    def shared(self) -> bool:
        """Whether every router reaches these objects, wherever it runs."""

    def write(self, name: str, content: Iterable[bytes]) -> int:
        """Writes an object as a whole: it appears when it is complete, in place of one of this name. Returns its size.

        Raises OSError.
        """

    def read(self, name: str, start: int, end: int) -> bytes:
        """These bytes of an object, fewer where it ends before. Raises FileNotFoundError, OSError."""

    def remove(self, name: str) -> None:
        """Removes an object, if it exists. Raises OSError."""

    def names(self, prefix: str) -> list[str]:
        """The names of all objects below a folder. Raises OSError."""


def object_store(settings: Settings, data_dir: Path) -> "SealedStore | None":
    """The store of the settings; None where each machine would have its own and nothing is shared between them."""
    from cluster.objects.sealed import SealedStore

    if url := settings.batches.url:
        from cluster.objects.bucket import BucketStore

        return SealedStore(BucketStore(url))
    shared = not settings.cluster.head and "KUBERNETES_SERVICE_HOST" not in os.environ
    return SealedStore(FolderStore(data_dir / _FOLDER)) if shared else None


def blocks(store: ObjectStore, name: str, start: int, end: int) -> Iterator[bytes]:
    """These bytes of an object, block by block. Raises FileNotFoundError, DamagedObject (it is shorter), OSError."""
    while start < end:
        block = store.read(name, start, min(start + _BLOCK_BYTES, end))
        if not block:
            raise DamagedObject(f"object {name} is cut off before byte {end}")
        yield block
        start += len(block)


def numbered_lines(store: ObjectStore, name: str, start: int, end: int) -> Iterator[tuple[int, bytes]]:
    """The lines of these bytes of an object, each with the place of its first byte. Raises as `blocks`."""
    rest, at = b"", start
    for block in blocks(store, name, start, end):
        *lines, rest = (rest + block).split(b"\n")
        for line in lines:
            yield at, line
            at += len(line) + 1
    if rest:
        yield at, rest
