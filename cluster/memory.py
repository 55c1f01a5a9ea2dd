"""How much memory this machine has, or a cgroup leaves of it."""

from pathlib import Path

import psutil

_CGROUP_MEMORY = Path("/sys/fs/cgroup")


def memory_size() -> int:
    """Bytes of the machine, or fewer where a cgroup limits them."""
    size, limit = int(psutil.virtual_memory().total), memory_limit()
    return size if limit is None else min(size, limit)


def available_memory() -> int:
    """Bytes that may still be used: the machine's, or fewer where a cgroup limits them."""
    available = int(psutil.virtual_memory().available)
    limit = memory_limit()
    return available if limit is None else min(available, limit - int((_CGROUP_MEMORY / "memory.current").read_text()))


def memory_limit() -> int | None:
    """Bytes that this process's cgroup may use; None without a limit."""
    try:
        limit = (_CGROUP_MEMORY / "memory.max").read_text().strip()
    except OSError:
        return None
    return None if limit == "max" else int(limit)
