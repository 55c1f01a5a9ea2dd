"""Signs of life: each replica's process touches a file every second, and its machine's supervisor kills silent ones.

Ray ends a process by asking it to end, so one that hangs would stay, with its leased cores. The signs are files because
Redis and Ray may hang as well. The supervisor is the launcher, and in a pod the sidecar that serves the metrics.
"""

import asyncio
import logging
import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

log = logging.getLogger("dray.liveness")

FOLDER = "PROMETHEUS_MULTIPROC_DIR"
"""Variable with the folder of the signs: that of the metrics, which the sidecar of a pod sees too."""
SILENCE_S = 10.0
"""After this long a process counts as hung. Serve gives up a router after about twice that, an engine replica later."""
INTERVAL_S = 1.0
_PAUSE_S = 5.0
"""Whoever looks this rarely was suspended, or had no CPU; the processes had none either."""
_SUFFIX = ".alive"


async def show_life(folder: Path) -> None:
    """Shows every second, until it is cancelled, that this process's event loop runs."""
    # Empty files need no room on a full disk. Process numbers are used again; with the start time they are unique.
    file = folder / f"{os.getpid()}-{_started(os.getpid())}{_SUFFIX}"
    try:
        while True:
            # Without a file nobody misses this process. Where nobody can write, `HungProcesses` counts no silence.
            with suppress(OSError):
                file.touch(0o600)
            await asyncio.sleep(INTERVAL_S)
    finally:
        file.unlink(missing_ok=True)


class HungProcesses:
    """Kills the processes that stop to show life in a folder; call `kill` every second."""

    def __init__(self, folder: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._folder = folder
        self._clock = clock
        self._looked = clock()
        self._seen: dict[Path, tuple[int, float]] = {}

    def kill(self) -> None:
        """Kills processes that were silent for too long, and removes the files of those that have ended.

        Raises OSError where this process cannot write to the folder; then the others cannot either.
        """
        os.utime(self._folder)
        now = self._clock()
        if now - self._looked > _PAUSE_S:
            self._seen.clear()
        self._looked = now
        seen = {}
        for file in self._folder.glob(f"*{_SUFFIX}"):
            with suppress(FileNotFoundError):
                # Only whether it changes counts: the wall clock that it comes from may jump.
                touched = file.stat().st_mtime_ns
                before, since = self._seen.get(file, (touched, now))
                seen[file] = (touched, now if touched != before else since)
                if now - seen[file][1] > SILENCE_S:
                    _end(file)
                    del seen[file]
        self._seen = seen


def _end(file: Path) -> None:
    """Kills the process that the file belongs to, if it still runs, and removes the file."""
    pid, _, started = file.stem.partition("-")
    if pid.isdecimal() and _started(int(pid)) == started:
        log.error("%s (process %s) hangs: no sign of life for %.0f s; killing it", _title(pid), pid, SILENCE_S)
        with suppress(ProcessLookupError):
            os.kill(int(pid), signal.SIGKILL)
    file.unlink(missing_ok=True)


def _started(pid: int) -> str:
    """When the process started, in the kernel's clock ticks since boot; empty if there is none."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""
    # Field 22 of proc_pid_stat(5). The second is the name, in parentheses, and may contain anything.
    return text.rpartition(")")[2].split()[19]


def _title(pid: str) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text(errors="replace").partition("\0")[0].strip()
    except OSError:
        return "a replica"
