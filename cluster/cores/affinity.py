"""Keeping a process on its CPUs: pin it, see whether it still is, pin it again.

Something may move it: a kubelet that rewrites a cpuset resets the affinity of every thread in it.
"""

import os
from collections.abc import Callable, Collection
from pathlib import Path

from cluster.cores.topology import format_cpus

# A thread that appears while the others are being pinned may have inherited the old affinity: look again
# until a whole pass finds nothing to do. A process that starts threads faster than this is not one to wait
# for.
_PASSES = 16


class PinningRefused(Exception):
    """The kernel would not run the process on all of the CPUs asked for, and on no other."""


def pin_process(cpus: Collection[int], pid: int = 0) -> None:
    """Let every thread of process `pid` (0: this one) run on all of `cpus` and nowhere else.

    Threads started later inherit it. Call it before OpenVINO loads, which sizes itself by it.
    PinningRefused when the process's cpuset does not hold all of them; ProcessLookupError when there is no
    process.
    """
    wanted = frozenset(cpus)
    _settle(wanted, pid, lambda now: now == wanted)


def check_affinity(cpus: Collection[int], pid: int = 0) -> bool:
    """Whether every thread of process `pid` (0: this one) may run only on some of `cpus`.

    A thread on fewer is right too: OpenVINO may bind each of its own to one core.
    ProcessLookupError when there is no such process.
    """
    wanted = frozenset(cpus)
    return all(_affinity(thread) <= wanted for thread in _threads(pid))


def repin(cpus: Collection[int], pid: int = 0) -> int:
    """Pin to `cpus` the threads of process `pid` (0: this one) that may run elsewhere; how many there were.

    Errors as in `pin_process`.
    """
    wanted = frozenset(cpus)
    return _settle(wanted, pid, lambda now: now <= wanted)


def _settle(cpus: frozenset[int], pid: int, settled: Callable[[frozenset[int]], bool]) -> int:
    moved: set[int] = set()
    for _ in range(_PASSES):
        astray = [thread for thread in _threads(pid) if not settled(_affinity(thread))]
        if not astray:
            return len(moved)
        for thread in astray:
            _pin_thread(thread, cpus)
        moved.update(astray)
    raise PinningRefused(f"process {pid or os.getpid()} does not stay on CPUs {format_cpus(cpus)}: something moves it")


def _pin_thread(thread: int, cpus: frozenset[int]) -> None:
    try:
        os.sched_setaffinity(thread, cpus)
    except ProcessLookupError:
        return
    except OSError as error:
        raise PinningRefused(f"thread {thread} may not run on CPUs {format_cpus(cpus)}: {error.strerror}") from error
    # The kernel leaves out, without an error, the CPUs that the thread's cpuset does not hold.
    missing = cpus - _affinity(thread)
    if missing and Path(f"/proc/{thread}").exists():
        raise PinningRefused(
            f"thread {thread} may not run on CPUs {format_cpus(missing)}: its cpuset does not hold them. "
            "Take a new lease, in the container that the process runs in"
        )


def _threads(pid: int) -> list[int]:
    try:
        return [int(entry.name) for entry in Path(f"/proc/{pid or os.getpid()}/task").iterdir()]
    except FileNotFoundError:
        raise ProcessLookupError(f"no process {pid}") from None


def _affinity(thread: int) -> frozenset[int]:
    try:
        return frozenset(os.sched_getaffinity(thread))
    except ProcessLookupError:
        return frozenset()
