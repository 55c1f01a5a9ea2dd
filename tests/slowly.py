"""Slows a process down: lets it run for only a share of the time, as on a slow machine."""

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

_PERIOD_S = 0.25


@contextmanager
def slowed(pid: int, share: float = 0.008) -> Iterator[None]:
    """While the block runs, the process runs for this share of the time."""
    command = [sys.executable, "-m", "tests.slowly", str(pid), str(share)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as brake:
        assert brake.stdout is not None
        assert brake.stdout.readline() == b"started\n"
        yield


def brake(pid: int, share: float) -> None:
    """Stops and continues the process in turn, until standard input closes."""
    # With priority where that is allowed: if this process is late, the slowed process runs for too long.
    with suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, 0, -15)
    print("started", flush=True)
    with suppress(ProcessLookupError):
        try:
            while True:
                os.kill(pid, signal.SIGSTOP)
                if select.select([sys.stdin], [], [], _PERIOD_S * (1 - share))[0]:
                    return
                os.kill(pid, signal.SIGCONT)
                time.sleep(_PERIOD_S * share)
        finally:
            os.kill(pid, signal.SIGCONT)


if __name__ == "__main__":
    brake(int(sys.argv[1]), float(sys.argv[2]))
