"""Folders and files that no other user of this machine may read or replace.

In a shared folder such as /tmp, another user can take a name first, with a folder, a file or a link. So nothing here
trusts what already exists: the owner, the type and the permission bits of a folder are checked after it is made, and
files are opened without following links.
"""

import grp
import os
import pwd
import secrets
import stat
from contextlib import suppress
from pathlib import Path
from typing import Literal


class NotPrivate(OSError):
    """A path belongs to another user, is a link, or is open to others. The message says how to mend it."""


def private_folder(path: Path) -> Path:
    """Makes a folder for this user alone, with its parents, unless it exists; returns its path. Raises NotPrivate."""
    _make(path, 0o700)
    _check(path, os.lstat(path), "folder")
    return path


def check_private_folder(path: Path) -> None:
    """Raises NotPrivate if the path exists and is not a private folder of this user."""
    with suppress(FileNotFoundError):
        _check(path, os.lstat(path), "folder")


def writable_folder(path: Path) -> Path:
    """Makes a folder that others may read but not change, unless it exists; returns its path.

    A link of this user or of root may lead there. Raises NotPrivate.
    """
    _make(path, 0o755)
    check_writable_folder(path)
    return path


def check_writable_folder(path: Path) -> None:
    """Raises NotPrivate if the path exists and others than this user and root may change what is in it."""
    with suppress(FileNotFoundError):
        status = os.lstat(path)
        if stat.S_ISLNK(status.st_mode) and status.st_uid in (0, os.geteuid()):
            path, status = path.resolve(), path.stat()
        _check_writable(path, status)


def parent_folder(path: Path) -> Path:
    """Makes the folder that something new is to be put in, unless it exists; returns its real path.

    As `writable_folder`, but a link may lead there, and a shared folder such as /tmp is accepted, in which nobody can
    replace what another user has made. Raises NotPrivate.
    """
    path = path.resolve()
    _make(path, 0o755)
    status = path.stat()
    if not status.st_mode & stat.S_ISVTX or status.st_uid not in (0, os.geteuid()):
        _check_writable(path, status)
    return path


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
        _check(path, os.fstat(descriptor), "file")
        return file.read()


def _make(path: Path, mode: int) -> None:
    missing = [folder for folder in (path, *path.parents) if not os.path.lexists(folder)]
    # One by one: mkdir(parents=True) would open the parents to others.
    for folder in reversed(missing):
        with suppress(FileExistsError):
            folder.mkdir(mode=mode)


def _check(path: Path, status: os.stat_result, kind: Literal["folder", "file"]) -> None:
    """Raises NotPrivate for what is not of this user alone."""
    _check_kind(path, status, kind)
    if status.st_uid != os.geteuid():
        raise NotPrivate(f"{path} belongs to user {status.st_uid}, not to you. Move it away or choose another {kind}.")
    if status.st_mode & 0o077:
        raise NotPrivate(f"{path} must be private, but has mode {_bits(status)}. Mend it: chmod go= {path}")


def _check_writable(path: Path, status: os.stat_result) -> None:
    """Raises NotPrivate for a folder whose content another user may change."""
    _check_kind(path, status, "folder")
    if "KUBERNETES_SERVICE_HOST" in os.environ:
        return  # a pod has no other users, and a volume the owner and the mode that its driver chose
    if status.st_uid not in (0, os.geteuid()):
        raise NotPrivate(f"{path} belongs to user {status.st_uid}, not to you. Move it away or choose another folder.")
    forbidden = 0o002 if _is_own_group(status.st_gid) else 0o022
    if status.st_mode & forbidden:
        raise NotPrivate(
            f"{path} must be writable by its owner only, but has mode {_bits(status)}. Mend it: chmod go-w {path}"
        )


def _check_kind(path: Path, status: os.stat_result, kind: Literal["folder", "file"]) -> None:
    if stat.S_ISLNK(status.st_mode):
        raise NotPrivate(f"{path} is a link, so it could lead anywhere. Remove it: rm {path}")
    if not (stat.S_ISDIR if kind == "folder" else stat.S_ISREG)(status.st_mode):
        raise NotPrivate(f"{path} is not a {kind}. Move it away.")


def _bits(status: os.stat_result) -> str:
    return f"{stat.S_IMODE(status.st_mode):03o}"


def _is_own_group(group_id: int) -> bool:
    """Whether nobody else is in the group: many systems give each user a group of the same name, and umask 002."""
    try:
        user, group = pwd.getpwuid(os.geteuid()), grp.getgrgid(group_id)
    except KeyError:
        return False
    return group_id == user.pw_gid != 0 and group.gr_name == user.pw_name and {*group.gr_mem} <= {user.pw_name}
