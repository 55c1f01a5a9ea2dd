"""Fetching: a repository's files come into a folder, all of them and right, or not at all."""

import errno
import fcntl
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatch
from hashlib import new as new_hash
from pathlib import Path
from typing import Protocol

from cluster.models.hubs import Listing, ModelHub, RemoteFile

_ATTEMPTS = 2
_SPARE_BYTES = 64 * 2**20
_READ_BYTES = 1 << 22

OPENVINO_FILES = ("openvino_*.xml", "openvino_*.bin", "*.json", "*.jinja", "*.txt", "*.model", "*.py", "LICENSE*")
WEIGHT_FILES = ("*.safetensors", "*.json", "*.jinja", "*.txt", "*.model", "LICENSE*")
REMOTE_CODE = ("*.py",)


class FetchError(Exception):
    """The files cannot be had; the message says why."""


class DownloadProgress(Protocol):
    """Who watches a download."""

    def begin(self, files: Sequence[RemoteFile]) -> None:
        """These files will come."""

    def advance(self, path: str, size: int) -> None:
        """`size` bytes more of this file are there."""

    def check(self, path: str) -> None:
        """This file is there, and its content is being checked."""


def matching_files(listing: Listing, patterns: Sequence[str]) -> list[RemoteFile]:
    """The files of the repository's top folder that match."""
    return [
        file
        for file in listing.files
        if "/" not in file.path and any(fnmatch(file.path, pattern) for pattern in patterns)
    ]


def fetch(
    hub: ModelHub, listing: Listing, files: Sequence[RemoteFile], folder: Path, watcher: DownloadProgress
) -> None:
    """Brings the files into the folder and checks each against what the hub says of it.

    Goes on from what an earlier try left in the folder. A file that came wrong is fetched once more.
    Raises FetchError, HubError.
    """
    needed = sum(file.size for file in files) - sum(_there(folder / file.path) for file in files)
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if needed + _SPARE_BYTES > free:
        raise FetchError(
            f"{listing.repository} needs {_gb(needed)} more and {folder} has {_gb(free)} free; "
            "make room or set models_dir to another disk"
        )
    watcher.begin(files)
    left = list(files)
    for _ in range(_ATTEMPTS):
        with _disk_full_named(folder):
            hub.download(listing, left, folder, watcher.advance)
        left = [file for file in left if not _right(folder / file.path, file, watcher)]
        for file in left:
            (folder / file.path).unlink(missing_ok=True)
            watcher.advance(file.path, -file.size)
        if not left:
            break
    if left:
        raise FetchError(
            f"{left[0].path} of {listing.repository} came with a wrong checksum {_ATTEMPTS} times; "
            f"{hub.endpoint} does not serve what it lists, try another source"
        )
    shutil.rmtree(folder / ".cache", ignore_errors=True)


@contextmanager
def exclusive(lock: Path) -> Iterator[None]:
    """Holds a lock file: two processes never fetch one model at once. Raises FetchError if another does."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("a") as held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FetchError(f"another process is fetching this model now ({lock})") from None
        yield


def _there(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _right(path: Path, file: RemoteFile, watcher: DownloadProgress) -> bool:
    if not path.is_file() or path.stat().st_size != file.size:
        return False
    watcher.check(file.path)
    if file.sha256:
        return _digest(path, "sha256", b"") == file.sha256
    # Git names a file by the hash of a header and its content.
    return not file.blob_id or _digest(path, "sha1", f"blob {file.size}\0".encode()) == file.blob_id


def _digest(path: Path, algorithm: str, prefix: bytes) -> str:
    digest = new_hash(algorithm, prefix, usedforsecurity=False)
    with path.open("rb") as content:
        while piece := content.read(_READ_BYTES):
            digest.update(piece)
    return digest.hexdigest()


@contextmanager
def _disk_full_named(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise FetchError(f"the disk of {folder} is full; what came is kept, and the next try goes on") from None
        raise FetchError(f"download failed: {error}") from None


def _gb(size: int) -> str:
    return f"{size / 1e9:.1f} GB"
