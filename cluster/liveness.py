"""Signs of life: Ray's workers on a machine touch files every second, and the machine's supervisor kills silent ones.

Ray ends a process by asking it to end, so one that hangs would stay, with its leased cores; and while Serve's
controller hangs, nothing is replaced. The signs are files because Redis and Ray may hang as well. The supervisor is the
launcher, and in a pod the sidecar that serves the metrics.

Every worker shows from its start, by a thread, that it is not stopped. One that becomes a replica must show within two
minutes that its event loop runs. Until then its thread does not count: a library that loads a model on a busy machine
may keep it waiting.
"""

import asyncio
import logging
import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from threading import Thread

log = logging.getLogger("dray.liveness")

FOLDER = "PROMETHEUS_MULTIPROC_DIR"
"""Variable with the folder of the signs: that of the metrics, which the sidecar of a pod sees too."""
SILENCE_S = 10.0
"""After this long a process counts as hung. Serve gives up a router after about twice that, an engine replica later."""
START_S = 120.0
"""A replica whose event loop shows no life for this long after its start counts as hung. On a busy machine a start
takes half a minute; an engine's own, which may take longer, happens beside the event loop."""
INTERVAL_S = 1.0
_PAUSE_S = 5.0
"""Whoever looks this rarely was suspended, or had no CPU; the processes had none either."""
_ALIVE, _WORKER = ".alive", ".worker"
_REPLICA = "ray::ServeReplica:"
"""How the title of a replica's process begins. Ray sets it before it imports the replica's class (ray 2.60)."""


def show_worker_life(folder: Path) -> None:
    """Shows every second, until the process ends, that this worker is not stopped. Returns at once."""
    file = _file(folder, _WORKER)
    _touch(file)

    def show() -> None:
        while True:
            time.sleep(INTERVAL_S)
            _touch(file)

    Thread(target=show, name="show life", daemon=True).start()


async def show_life(folder: Path) -> None:
    """Shows every second, until it is cancelled, that this process's event loop runs."""
    file = _file(folder, _ALIVE)
    try:
        while True:
            _touch(file)
            await asyncio.sleep(INTERVAL_S)
    finally:
        file.unlink(missing_ok=True)


class HungProcesses:
    """Kills the processes that stop to show life in a folder, or do not begin to; call `kill` every second."""

    def __init__(self, folder: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._folder = folder
        self._clock = clock
        self._looked = clock()
        self._seen: dict[Path, tuple[int, float]] = {}
        """When each file was touched, and since when that has not changed."""
        self._starting: dict[Path, float] = {}
        """The replicas whose event loops have shown no life yet, by their workers' files, and since when."""
        self._started: set[str] = set()
        """The replicas whose event loops have, by their files' stems. One that ends shows no more, for any time."""

    def kill(self) -> None:
        """Kills processes that were silent for too long, and removes the files of those that have ended.

        Raises OSError where this process cannot write to the folder; then the others cannot either.
        """
        os.utime(self._folder)
        now = self._clock()
        if now - self._looked > _PAUSE_S:
            self._seen.clear()
            self._starting.clear()
        self._looked = now
        files = [*self._folder.glob(f"*{_ALIVE}"), *self._folder.glob(f"*{_WORKER}")]
        self._started |= {file.stem for file in files if file.suffix == _ALIVE}
        self._started &= {file.stem for file in files}
        starting = {file for file in files if self._is_starting(file)}
        self._kill_silent(set(files) - starting, now)
        self._kill_starting(starting, now)

    def _is_starting(self, file: Path) -> bool:
        """Whether it is the worker's file of a replica whose event loop has shown no life yet."""
        return file.stem not in self._started and _title(file).startswith(_REPLICA)

    def _kill_silent(self, files: set[Path], now: float) -> None:
        seen = {}
        for file in files:
            with suppress(FileNotFoundError):
                # Only whether it changes counts: the wall clock that it comes from may jump.
                touched = file.stat().st_mtime_ns
                before, since = self._seen.get(file, (touched, now))
                seen[file] = (touched, now if touched != before else since)
                if now - seen[file][1] > SILENCE_S:
                    _end(file, f"hangs: no sign of life for {SILENCE_S:.0f} s")
        self._seen = seen

    def _kill_starting(self, files: set[Path], now: float) -> None:
        self._starting = {file: self._starting.get(file, now) for file in files}
        for file, since in self._starting.items():
            if now - since > START_S:
                _end(file, f"hangs at its start: its event loop shows no life for {START_S:.0f} s")


def _file(folder: Path, suffix: str) -> Path:
    """This process's file. Empty ones need no room on a full disk."""
    # Process numbers are used again; with the start time they are unique.
    return folder / f"{os.getpid()}-{_started(os.getpid())}{suffix}"


def _touch(file: Path) -> None:
    # Without a file nobody misses this process. Where nobody can write, `HungProcesses` counts no silence.
    with suppress(OSError):
        file.touch(0o600)


def _end(file: Path, reason: str) -> None:
    """Kills the process that the file belongs to, if it still runs, and removes its files."""
    if _runs(file):
        log.error("%s (process %d) %s; killing it", _title(file) or "a worker", _pid(file), reason)
        with suppress(ProcessLookupError):
            os.kill(_pid(file), signal.SIGKILL)
    for suffix in (_ALIVE, _WORKER):
        file.with_suffix(suffix).unlink(missing_ok=True)


def _runs(file: Path) -> bool:
    """Whether the process that the file belongs to still runs."""
    return _pid(file) > 0 and _started(_pid(file)) == file.stem.partition("-")[2]


def _pid(file: Path) -> int:
    """Number of the process that the file belongs to; 0 where its name has none."""
    number = file.stem.partition("-")[0]
    return int(number) if number.isdecimal() else 0


def _started(pid: int) -> str:
    """When the process started, in the kernel's clock ticks since boot; empty if there is none, or it has ended."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""
    # Fields 3 and 22 of proc_pid_stat(5). The second is the name, in parentheses, and may contain anything.
    fields = text.rpartition(")")[2].split()
    return "" if fields[0] in "ZX" else fields[19]


def _title(file: Path) -> str:
    """Title of the process that the file belongs to; empty if it has ended."""
    try:
        return Path(f"/proc/{_pid(file)}/cmdline").read_text(errors="replace").partition("\0")[0].strip()
    except OSError:
        return ""
