"""Paths made from names that a user, a hub or another process gave. They never lead out of their folder."""

import os
from pathlib import Path

from cluster.private_files import NotPrivate, writable_folder

_SEPARATORS = ("/", "\\", "\0")


class UnsafeNameError(Exception):
    """A name that would lead out of the folder that it belongs in; the message names it."""


def child(folder: Path, name: str) -> Path:
    """The entry `name` directly inside `folder`; it need not exist.

    Raises UnsafeNameError for a name that is empty, `.` or `..`, or holds a separator or a NUL byte.
    """
    if name in ("", ".", "..") or any(separator in name for separator in _SEPARATORS):
        raise UnsafeNameError(f"{name!r} is not the name of a file or folder inside {folder}")
    return folder / name


def owned_child(folder: Path, name: str) -> Path:
    """As `child`, for what is written or deleted: an entry that is a symbolic link is refused as well."""
    path = child(folder, name)
    real = Path(os.path.realpath(path))
    if path.is_symlink() or real != Path(os.path.realpath(folder), name):
        raise UnsafeNameError(f"{path} is a link to {real}; Dray writes and deletes only inside {folder}")
    return path


def writable_models(models_dir: Path) -> Path:
    """Makes the store of models, unless it exists, before something is written there; returns its path.

    Models are read from any folder. Raises NotPrivate where another user may change what Dray writes.
    """
    try:
        return writable_folder(models_dir)
    except NotPrivate as error:
        raise NotPrivate(f"{error} Or set models_dir (DRAY_MODELS_DIR) to a folder of your own.") from None
