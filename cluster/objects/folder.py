"""Objects as files in a private folder of this machine."""

import os
import re
import secrets
import time
from collections.abc import Iterable
from pathlib import Path

from cluster.private_files import private_folder

_NAME = re.compile(r"[A-Za-z0-9_-]{1,128}(/[A-Za-z0-9_-]{1,128})?")
_DRAFT = ".draft-"
_ABANDONED_S = 86_400


class FolderStore:
    """Objects in one folder, which no other user of the machine may read."""

    shared = False
    """As ObjectStore says."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def write(self, name: str, content: Iterable[bytes]) -> int:
        """As ObjectStore says."""
        path = self._path(name)
        private_folder(path.parent)
        draft = path.with_name(f"{_DRAFT}{secrets.token_hex(8)}")
        descriptor, size = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600), 0
        try:
            with os.fdopen(descriptor, "wb") as file:
                for block in content:
                    size += file.write(block)
                file.flush()
                os.fsync(file.fileno())
            draft.replace(path)
        except BaseException:
            draft.unlink(missing_ok=True)
            raise
        return size

    def read(self, name: str, start: int, end: int) -> bytes:
        """As ObjectStore says."""
        descriptor = os.open(self._path(name), os.O_RDONLY | os.O_NOFOLLOW)
        with os.fdopen(descriptor, "rb") as file:
            file.seek(start)
            return file.read(max(0, end - start))

    def remove(self, name: str) -> None:
        """As ObjectStore says."""
        self._path(name).unlink(missing_ok=True)

    def names(self, prefix: str) -> list[str]:
        """As ObjectStore says. Drafts of processes that died long ago are removed."""
        found, folder = [], self._path(prefix)
        if not folder.is_dir():
            return []
        for path in folder.iterdir():
            if not path.name.startswith(_DRAFT):
                found.append(f"{prefix}/{path.name}")
            elif time.time() - path.lstat().st_mtime > _ABANDONED_S:
                path.unlink(missing_ok=True)
        return found

    def _path(self, name: str) -> Path:
        # Names are Dray's own; if ever one came from a request, it would not leave the folder.
        if not _NAME.fullmatch(name):
            raise ValueError(f"{name!r} is no object's name")
        return self._folder / name
