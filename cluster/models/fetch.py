"""Fetching: a repository's files arrive in a folder complete and verified, or not at all."""

import errno
import fcntl
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatch
from functools import reduce
from hashlib import new as new_hash
from pathlib import Path
from typing import Protocol

from cluster.models.hubs import FileSource, Listing, RemoteFile
from cluster.models.paths import UnsafeNameError, child, owned_child
from cluster.models.tasks import POOLING_FILE
from cluster.private_files import writable_folder
from cluster.units import format_bytes

_ATTEMPTS = 2
_SPARE_BYTES = 64 * 2**20
_READ_BYTES = 1 << 22

OPENVINO_FILES = ("openvino_*.xml", "openvino_*.bin", "*.json", "*.jinja", "*.txt", "*.model", "*.py", "LICENSE*")
WEIGHT_FILES = ("*.safetensors", "*.json", "*.jinja", "*.txt", "*.model", "LICENSE*")
REMOTE_CODE = ("*.py",)


class FetchError(Exception):
    """The files cannot be fetched; the message says why."""


class DownloadProgress(Protocol):
    """Receives the progress of a download."""

    def begin(self, files: Sequence[RemoteFile]) -> None:
        """The download of these files begins."""

    def advance(self, path: str, size: int) -> None:
        """`size` more bytes of this file have arrived (negative: that many were dropped)."""

    def check(self, path: str) -> None:
        """This file has arrived, and its content is being verified."""


def matching_files(listing: Listing, patterns: Sequence[str]) -> list[RemoteFile]:
    """The files in the repository's top folder that match a pattern, and an embedding model's pooling.

    Raises FetchError where the hub lists any path that would lead out of a folder.
    """
    for file in listing.files:
        try:
            for part in file.path.split("/"):
                child(Path(), part)
        except UnsafeNameError:
            raise FetchError(
                f"{listing.repository} lists a file {file.path!r}, whose path leads out of the model's folder; "
                "nothing was fetched from it"
            ) from None
    return [
        file
        for file in listing.files
        if file.path == POOLING_FILE
        or ("/" not in file.path and any(fnmatch(file.path, pattern) for pattern in patterns))
    ]


def fetch(
    source: FileSource, listing: Listing, files: Sequence[RemoteFile], folder: Path, progress: DownloadProgress
) -> None:
    """Downloads the files into the folder and verifies each against the listing.

    Resumes what an earlier attempt left in the folder. A file that arrives damaged is fetched once more.
    Raises FetchError, HubError, UnsafeNameError, and NotPrivate where another user may change the folder.
    """
    paths = {file.path: reduce(owned_child, file.path.split("/"), folder) for file in files}
    missing_bytes = sum(file.size for file in files) - sum(_bytes_on_disk(path) for path in paths.values())
    writable_folder(folder)
    free = shutil.disk_usage(folder).free
    if missing_bytes + _SPARE_BYTES > free:
        raise FetchError(
            f"{listing.repository} needs {format_bytes(missing_bytes)} more, and {folder} has "
            f"{format_bytes(free)} free; free some space or set models_dir to another disk"
        )
    progress.begin(files)
    remaining = list(files)
    for _ in range(_ATTEMPTS):
        with _disk_errors(folder):
            source.download(listing, remaining, folder, progress.advance)
        remaining = [file for file in remaining if not _is_intact(paths[file.path], file, progress)]
        for file in remaining:
            paths[file.path].unlink(missing_ok=True)
            progress.advance(file.path, -file.size)
        if not remaining:
            break
    if remaining:
        raise FetchError(
            f"{remaining[0].path} of {listing.repository} arrived with a wrong checksum {_ATTEMPTS} times: "
            f"{source.endpoint} does not serve what it lists; try another source"
        )
    shutil.rmtree(folder / ".cache", ignore_errors=True)


@contextmanager
def exclusive(lock: Path, *, wait: bool = False) -> Iterator[None]:
    """Holds a lock file, so that two processes never fetch or remove one model at once.

    wait: until no other process holds it. Raises FetchError if one does, and this is not to wait;
    NotPrivate where another user may change the file's folder.
    """
    writable_folder(lock.parent)
    with lock.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            raise FetchError(f"another process is fetching this model now ({lock})") from None
        yield


def _bytes_on_disk(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _is_intact(path: Path, file: RemoteFile, progress: DownloadProgress) -> bool:
    if not path.is_file() or path.stat().st_size != file.size:
        return False
    progress.check(file.path)
    if file.sha256:
        return _digest(path, "sha256", b"") == file.sha256
    # Git names a file by the hash of a header and its content.
    return not file.blob_id or _digest(path, "sha1", f"blob {file.size}\0".encode()) == file.blob_id


def _digest(path: Path, algorithm: str, prefix: bytes) -> str:
    digest = new_hash(algorithm, prefix, usedforsecurity=False)
    with path.open("rb") as content:
        while chunk := content.read(_READ_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


@contextmanager
def _disk_errors(folder: Path) -> Iterator[None]:
    """Turns errors of the file system into FetchError."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise FetchError(f"the disk of {folder} is full; what arrived is kept, and the next try resumes") from None
        raise FetchError(f"download failed: {error}") from None
