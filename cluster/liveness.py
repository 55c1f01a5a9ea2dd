"""Signs of life: each replica's process touches a file every second, and its machine's supervisor kills silent ones.

Ray ends a process by asking it to end, so one that hangs would stay, with its leased cores. The signs are files because
Redis and Ray may hang as well. The supervisor is the launcher, and in a pod the sidecar that serves the metrics.

A process can hang before its first sign too. So each of Ray's workers announces itself by another file, and one that
has become a replica must show life soon.
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
START_S = 120.0
"""A replica that shows no life for this long after its start counts as hung. On a busy machine a start takes half a
minute; an engine's own, which may take longer, happens while its replica shows life."""
INTERVAL_S = 1.0
_PAUSE_S = 5.0
"""Whoever looks this rarely was suspended, or had no CPU; the processes had none either."""
_ALIVE, _WORKER = ".alive", ".worker"
_REPLICA = "ray::ServeReplica:"
"""How the title of a replica's process begins. Ray sets it before it imports the replica's class (ray 2.60)."""


def announce_worker(folder: Path) -> None:
    """Tells the supervisor of this process, which may become a replica, and then has to show life."""
    with suppress(OSError):
        _file(folder, _WORKER).touch(0o600)


async def show_life(folder: Path) -> None:
    """Shows every second, until it is cancelled, that this process's event loop runs."""
    file, announced = _file(folder, _ALIVE), _file(folder, _WORKER)
    try:
        while True:
            # Without a file nobody misses this process. Where nobody can write, `HungProcesses` counts no silence.
            with suppress(OSError):
                file.touch(0o600)
                announced.unlink(missing_ok=True)
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
        before, self._seen = self._seen, {}
        for file in self._folder.glob(f"*{_ALIVE}"):
            with suppress(FileNotFoundError):
                # Only whether it changes counts: the wall clock that it comes from may jump.
                touched = file.stat().st_mtime_ns
                known, since = before.get(file, (touched, now))
                self._judge(file, touched, now if touched != known else since, SILENCE_S)
        for file in self._folder.glob(f"*{_WORKER}"):
            if not _runs(file):
                file.unlink(missing_ok=True)
            # Until it is a replica it may wait for work for ever.
            elif _title(file).startswith(_REPLICA):
                self._judge(file, 0, before.get(file, (0, now))[1], START_S)

    def _judge(self, file: Path, touched: int, since: float, limit_s: float) -> None:
        """Ends the file's process if it has been silent for too long, and remembers since when otherwise."""
        if self._looked - since > limit_s:
            _end(file, limit_s)
        else:
            self._seen[file] = (touched, since)


def _file(folder: Path, suffix: str) -> Path:
    """This process's file. Empty ones need no room on a full disk."""
    # Process numbers are used again; with the start time they are unique.
    return folder / f"{os.getpid()}-{_started(os.getpid())}{suffix}"


def _end(file: Path, silent_s: float) -> None:
    """Kills the process that the file belongs to, if it still runs, and removes the file."""
    if _runs(file):
        name, pid = _title(file) or "a replica", _pid(file)
        hangs = "hangs at its start" if file.suffix == _WORKER else "hangs"
        log.error("%s (process %d) %s: no sign of life for %.0f s; killing it", name, pid, hangs, silent_s)
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    file.unlink(missing_ok=True)


def _runs(file: Path) -> bool:
    """Whether the process that the file belongs to still runs."""
    return _pid(file) > 0 and _started(_pid(file)) == file.stem.partition("-")[2]


def _pid(file: Path) -> int:
    """Number of the process that the file belongs to; 0 where its name has none."""
    number = file.stem.partition("-")[0]
    return int(number) if number.isdecimal() else 0


def _started(pid: int) -> str:
    """When the process started, in the kernel's clock ticks since boot; empty if there is none."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""
    # Field 22 of proc_pid_stat(5). The second is the name, in parentheses, and may contain anything.
    return text.rpartition(")")[2].split()[19]


def _title(file: Path) -> str:
    """Title of the process that the file belongs to; empty if it has ended."""
    try:
        return Path(f"/proc/{_pid(file)}/cmdline").read_text(errors="replace").partition("\0")[0].strip()
    except OSError:
        return ""
