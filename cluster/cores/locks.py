"""The lock files in a folder of leases: one a core, and one for whoever is choosing.

A core's file is opened, and an idle one deleted, only by whoever holds the allocation lock, and who gets that lock
looks whether its file is still the one that others see: so nobody ever relies on a deleted file.
"""

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from cluster.cores.topology import Core
from cluster.private_files import check_private_folder, private_folder

_POLL_S = 0.002
ALLOCATION_WAIT_S = 10.0


class LeasesUnavailable(Exception):
    """The folder of the leases cannot be used, or another process keeps its allocation lock."""


@dataclass(frozen=True, slots=True)
class HeldCore:
    """A core that some process has leased: what the holder wrote beside its lock.

    `cpus` are all the core's hardware threads; `pid` is the process that took the lease, which a child may
    have outlived; `since` is in seconds of Unix time.
    """

    cpus: tuple[int, ...]
    owner: str
    pid: int
    since: float


@contextlib.contextmanager
def allocating(directory: Path, wait_s: float, *, create: bool) -> Iterator[None]:
    """Be the only one that looks at or takes the locks in `directory`.

    FileNotFoundError where there is no such folder and it is not to be created; LeasesUnavailable.
    """
    path = directory / "allocate.lock"
    try:
        with contextlib.ExitStack() as stack:
            while True:
                try:
                    (private_folder if create else check_private_folder)(directory)
                    fd = stack.enter_context(_opened(path))
                except FileNotFoundError:
                    if create:
                        continue  # `sweep` took the folder away in this very moment
                    raise
                _wait_for_lock(fd, path, wait_s)
                stack.callback(_unlock, fd)
                if os.fstat(fd).st_nlink:
                    break
                stack.close()  # `sweep` took the file away while this waited for it
            os.ftruncate(fd, 0)
            os.pwrite(fd, str(os.getpid()).encode(), 0)
            yield
    except FileNotFoundError:
        raise
    except OSError as error:
        raise LeasesUnavailable(
            f"cannot lease cores in {directory}: {error}. It must be a local folder that this user may write"
        ) from error


def _wait_for_lock(fd: int, path: Path, wait_s: float) -> None:
    # A blocking flock() has no time limit, hence the polling; the lock is held for about a millisecond.
    deadline = time.monotonic() + wait_s
    while not _try_lock(fd):
        if time.monotonic() >= deadline:
            holder = os.pread(fd, 32, 0).decode(errors="replace") or "unknown"
            raise LeasesUnavailable(
                f"{path} has been locked for {wait_s:g} s, by process {holder} when last seen. "
                "See whether that process is stopped, and end it"
            )
        time.sleep(_POLL_S)


def read_held(directory: Path) -> list[HeldCore]:
    """The cores whose files are locked, by CPU number. Call it in `allocating`: it tries the locks."""
    held = []
    for path in directory.glob("core-[0-9]*.lock"):
        with _opened(path) as fd:
            if _try_lock(fd):
                # What it says is of a lease that has ended.
                _unlock(fd)
            else:
                held.append(_read_holder(fd, path))
    return sorted(held, key=lambda core: core.cpus)


def sweep(directory: Path, *, wait_s: float = ALLOCATION_WAIT_S) -> None:
    """Delete the lock files that nobody holds, and the folder when nothing is left in it; leases are not touched."""
    with contextlib.suppress(FileNotFoundError), allocating(directory, wait_s, create=False):
        for path in directory.glob("core-[0-9]*.lock"):
            with _opened(path) as fd:
                if _try_lock(fd):
                    path.unlink()
                    _unlock(fd)
        if not any(directory.glob("core-*")):
            (directory / "allocate.lock").unlink()
    with contextlib.suppress(OSError):
        directory.rmdir()


def lock_cores(cores: Iterable[Core], directory: Path, owner: str) -> tuple[int, ...]:
    """Lock the files of `cores`, all or none. Call it in `allocating`, for cores not held."""
    with contextlib.ExitStack() as undo:
        fds = []
        for core in cores:
            fd = _open(directory / f"core-{core.id}.lock")
            undo.callback(os.close, fd)
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            undo.callback(_unlock, fd)
            holder = {"pid": os.getpid(), "owner": owner, "since": time.time(), "cpus": core.cpus}
            os.ftruncate(fd, 0)
            os.pwrite(fd, json.dumps(holder).encode(), 0)
            fds.append(fd)
        undo.pop_all()
    return tuple(fds)


def _read_holder(fd: int, path: Path) -> HeldCore:
    try:
        holder = json.loads(os.pread(fd, 65536, 0))
        return HeldCore(
            cpus=tuple(int(cpu) for cpu in holder["cpus"]),
            owner=str(holder["owner"]),
            pid=int(holder["pid"]),
            since=float(holder["since"]),
        )
    except (ValueError, KeyError, TypeError):
        # Locked by something else than a lease, or written over: its name still says which core it is.
        return HeldCore(cpus=(int(path.stem.removeprefix("core-")),), owner="unknown", pid=0, since=0.0)


def _open(path: Path) -> int:
    # os.open sets O_CLOEXEC by itself (PEP 446): a lease goes to a child only on purpose.
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[int]:
    fd = _open(path)
    try:
        yield fd
    finally:
        os.close(fd)


def _try_lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _unlock(fd: int) -> None:
    # Not by closing alone: between fork and exec in another thread, a child has the descriptor too.
    fcntl.flock(fd, fcntl.LOCK_UN)
