"""Lets a process run only for a share of the time, so that what takes it moments takes as long as on a slow machine."""

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
    """The process runs for this share of the time while the block runs, or until it ends."""
    command = [sys.executable, "-m", "tests.slowly", str(pid), str(share)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as brake:
        assert brake.stdout is not None
        assert brake.stdout.readline() == b"begun\n"
        yield


def brake(pid: int, share: float) -> None:
    """Until its own standard input ends."""
    # Where it may, before all others: what holds it up lets the other one run on.
    with suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, 0, -15)
    print("begun", flush=True)
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
