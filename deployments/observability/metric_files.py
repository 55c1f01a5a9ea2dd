"""Metric files whose space is taken on the disk when they are made (prometheus_client 0.2x).

The library makes its files longer than what is written to them, and maps them into memory. The disk's blocks are only
taken when a process writes there. On a full disk the kernel then ends the process with SIGBUS.
"""

import logging
import mmap
import os
from pathlib import Path

from prometheus_client import values
from prometheus_client.mmap_dict import MmapedDict

log = logging.getLogger("dray.metrics")

_INITIAL_BYTES = 1 << 16
_NUMBERS = 20
"""Bytes of an entry besides its key: the key's length, its value and its time."""


class AllocatedDict(MmapedDict):
    """Values in a file with all its blocks. Where the disk is full they stay in memory, and nobody scrapes them."""

    def __init__(self, filename: str, read_mode: bool = False) -> None:
        if not read_mode and not _allocate(filename, _INITIAL_BYTES):
            Path(filename).unlink(missing_ok=True)  # an empty file breaks those who read it
            filename = os.memfd_create("metrics")  # type: ignore[assignment]  # open() takes it as well
        super().__init__(filename, read_mode)  # type: ignore[no-untyped-call]

    def _init_value(self, key: str) -> None:
        capacity = self._capacity
        while self._used + len(key.encode()) + 8 + _NUMBERS > capacity:
            capacity *= 2
        if capacity > self._capacity and not _allocate(self._f.fileno(), capacity):
            in_memory = mmap.mmap(-1, capacity)
            in_memory[: self._used] = self._m[: self._used]
            self._m, self._capacity = in_memory, capacity
        super()._init_value(key)  # type: ignore[no-untyped-call]


def take_space_at_once() -> None:
    """Makes all metrics that this process creates from now on use such files."""
    values.MmapedDict = AllocatedDict  # type: ignore[attr-defined]


def _allocate(file: str | int, size: int) -> bool:
    """Takes the file's blocks up to this size. Returns whether there was room."""
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o600) if isinstance(file, str) else os.dup(file)
    try:
        os.posix_fallocate(descriptor, 0, size)
        return True
    except OSError as error:
        log.warning("no room for metrics, which are not exposed from now on: %s", error)
        return False
    finally:
        os.close(descriptor)
