"""Kills the servers on this machine that hang: Redis, and Ray's own. The launcher starts Redis again, and ends without
Ray, as it does when they die.

They show no sign of life themselves. But their main threads look at timers many times a second, so one that a processor
has not run for seconds is stopped, or waits for something that does not come.
"""

import logging
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType

log = logging.getLogger("dray.launch")

PATIENCE_S = MappingProxyType({"redis-server": 20.0, "valkey-server": 20.0, "gcs_server": 60.0, "raylet": 60.0})
"""How long a program may stand still, by its name. Requests need none of Ray's; Ray gives up a node after a minute."""
_MIN_LOOKS = 3
"""Whoever looks seldom was suspended, or had no processor; the servers had none either."""
_SEARCH_S = 10.0
_GENERATIONS = 2
"""On a machine that has joined another, the raylet is a child of `ray start`."""


class _Main:
    """The main thread of a process. since: when it last ran. looks: since then."""

    def __init__(self, patience_s: float) -> None:
        self.patience_s = patience_s
        self.ran_ns = -1
        self.since = 0.0
        self.looks = 0


class HungServers:
    """Kills servers that this process has started, and that stand still; call `kill` every second."""

    def __init__(
        self, patience_s: Mapping[str, float] = PATIENCE_S, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """patience_s: by the name of a program; others are left alone."""
        self._patience_s = patience_s
        self._clock = clock
        self._searched = -_SEARCH_S
        self._mains: dict[int, _Main] = {}

    def kill(self) -> None:
        """Kills the servers whose main threads have not run for too long."""
        now = self._clock()
        if now - self._searched >= _SEARCH_S:
            self._search()
            self._searched = now
        for pid, main in list(self._mains.items()):
            ran_ns = _ran_ns(pid)
            if ran_ns is None:
                del self._mains[pid]
            elif ran_ns != main.ran_ns:
                main.ran_ns, main.since, main.looks = ran_ns, now, 0
            else:
                main.looks += 1
                if main.looks >= _MIN_LOOKS and now - main.since > main.patience_s:
                    _kill(pid, now - main.since)
                    del self._mains[pid]

    def _search(self) -> None:
        found = dict(_descendants(os.getpid(), _GENERATIONS))
        self._mains = {pid: main for pid, main in self._mains.items() if pid in found}
        for pid, name in found.items():
            if pid not in self._mains and name in self._patience_s:
                self._mains[pid] = _Main(self._patience_s[name])


def _descendants(parent: int, generations: int) -> Iterator[tuple[int, str]]:
    """Number and name of each process that this one has started, directly or through another."""
    for file in Path(f"/proc/{parent}/task").glob("*/children"):
        with suppress(OSError):
            for child in map(int, file.read_text().split()):
                with suppress(OSError):
                    yield child, Path(f"/proc/{child}/comm").read_text().strip()
                if generations > 1:
                    yield from _descendants(child, generations - 1)


def _ran_ns(pid: int) -> int | None:
    """For how long a processor has run the main thread; None where the process has ended, or that is not known."""
    try:
        return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return None


def _kill(pid: int, seconds: float) -> None:
    with suppress(OSError):
        name = Path(f"/proc/{pid}/comm").read_text().strip()
        log.error("%s (process %d) hangs: it has done nothing for %.0f s; killing it", name, pid, seconds)
        os.kill(pid, signal.SIGKILL)
