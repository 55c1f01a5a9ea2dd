"""Folders and files that no other user of this machine may read or replace.

In a shared folder such as /tmp, another user can take a name first, with a folder, a file or a link. So nothing here
trusts what already exists: the owner, the type and the permission bits of a folder are checked after it is made, and
files are opened without following links.
"""

import os
import secrets
import stat
from contextlib import suppress
from pathlib import Path
from typing import Literal


class NotPrivate(OSError):
    """A path belongs to another user, is a link, or is open to others. The message says how to mend it."""


def private_folder(path: Path) -> Path:
    """Makes a folder for this user alone, with its parents, unless it exists; returns its path. Raises NotPrivate."""
    return _folder(path, forbidden=0o077, purpose="private")


def writable_folder(path: Path) -> Path:
    """Makes a folder that others may read but not change, unless it exists; returns its path. Raises NotPrivate."""
    return _folder(path, forbidden=0o022, purpose="writable by its owner only")


def check_private_folder(path: Path) -> None:
    """Raises NotPrivate if the path exists and is not a private folder of this user."""
    try:
        _check(path, os.lstat(path), "folder", 0o077, "private")
    except FileNotFoundError:
        return


def write_private(path: Path, content: str) -> None:
    """Writes a file that only this user can read, atomically. What stood at the path is replaced, never followed."""
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(content)
        draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise


def read_private(path: Path) -> str:
    """The text of a file that only this user can read or write. Raises NotPrivate, FileNotFoundError, OSError."""
    # O_NONBLOCK: opening a named pipe that somebody put there must not hang.
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        if path.is_symlink():
            raise NotPrivate(f"{path} is a link. Remove it: rm {path}") from error
        raise
    with os.fdopen(descriptor, encoding="utf-8") as file:
        _check(path, os.fstat(descriptor), "file", 0o077, "private")
        return file.read()


def _folder(path: Path, forbidden: int, purpose: str) -> Path:
    missing = [folder for folder in (path, *path.parents) if not os.path.lexists(folder)]
    # One by one: mkdir(parents=True) would open the parents to others.
    for folder in reversed(missing):
        with suppress(FileExistsError):
            folder.mkdir(mode=0o700)
    _check(path, os.lstat(path), "folder", forbidden, purpose)
    return path


def _check(path: Path, status: os.stat_result, kind: Literal["folder", "file"], forbidden: int, purpose: str) -> None:
    if stat.S_ISLNK(status.st_mode):
        raise NotPrivate(f"{path} is a link, so it could lead anywhere. Remove it: rm {path}")
    if not (stat.S_ISDIR if kind == "folder" else stat.S_ISREG)(status.st_mode):
        raise NotPrivate(f"{path} is not a {kind}. Move it away.")
    if status.st_uid != os.geteuid():
        raise NotPrivate(f"{path} belongs to user {status.st_uid}, not to you. Move it away or choose another {kind}.")
    if status.st_mode & forbidden:
        bits = f"{stat.S_IMODE(status.st_mode):03o}"
        mend = f"chmod {'go=' if forbidden == 0o077 else 'go-w'} {path}"
        raise NotPrivate(f"{path} must be {purpose}, but has mode {bits}. Mend it: {mend}")
