"""Pinning of processes to CPUs of this machine."""

import os
import subprocess
import sys
import threading
from collections.abc import Iterable
from pathlib import Path

import pytest

from cluster.cores import (
    PinningRefused,
    check_affinity,
    pin_process,
    repin,
)


@pytest.fixture
def child() -> Iterable[subprocess.Popen[bytes]]:
    """A process with three threads, all on every CPU that this one may use."""
    program = (
        "import sys, threading, time\n"
        "for _ in range(2): threading.Thread(target=threading.Event().wait, daemon=True).start()\n"
        "print('ready', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-S", "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        yield process
        process.kill()


def threads(pid: int) -> list[int]:
    return [int(entry.name) for entry in Path(f"/proc/{pid}/task").iterdir()]


def test_every_thread_of_a_process_is_pinned(child: subprocess.Popen[bytes]) -> None:
    cpu = max(os.sched_getaffinity(0))
    pin_process((cpu,), child.pid)
    assert len(threads(child.pid)) == 3
    assert all(os.sched_getaffinity(thread) == {cpu} for thread in threads(child.pid))
    assert check_affinity((cpu,), child.pid)


needs_two_cpus = pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two CPUs to move between")


@needs_two_cpus
def test_a_thread_that_was_moved_is_detected_and_pinned_again(child: subprocess.Popen[bytes]) -> None:
    cpus = sorted(os.sched_getaffinity(0))
    pin_process(cpus[:1], child.pid)
    assert repin(cpus[:1], child.pid) == 0
    os.sched_setaffinity(threads(child.pid)[-1], cpus)
    assert not check_affinity(cpus[:1], child.pid)
    assert repin(cpus[:1], child.pid) == 1
    assert check_affinity(cpus[:1], child.pid)


@needs_two_cpus
def test_a_thread_bound_to_fewer_cpus_is_left_where_it_is(child: subprocess.Popen[bytes]) -> None:
    cpus = sorted(os.sched_getaffinity(0))
    thread = threads(child.pid)[-1]
    os.sched_setaffinity(thread, cpus[-1:])
    assert check_affinity(cpus, child.pid)
    assert repin(cpus, child.pid) == 0
    assert os.sched_getaffinity(thread) == {cpus[-1]}
    # pin_process is for a process that inherited its affinity from a narrower parent.
    pin_process(cpus, child.pid)
    assert os.sched_getaffinity(thread) == set(cpus)


@needs_two_cpus
def test_a_process_pins_itself_with_all_its_threads() -> None:
    before = os.sched_getaffinity(0)
    done = threading.Event()
    other = threading.Thread(target=done.wait)
    other.start()
    try:
        pin_process([max(before)])
        assert os.sched_getaffinity(0) == {max(before)}
        assert os.sched_getaffinity(other.native_id or 0) == {max(before)}
        assert check_affinity([max(before)])
    finally:
        pin_process(before)
        done.set()
        other.join()
    assert not check_affinity([max(before)])


def test_cpus_that_are_not_available_are_refused(child: subprocess.Popen[bytes]) -> None:
    cpus = os.sched_getaffinity(0)
    missing = max(cpus) + 500
    with pytest.raises(PinningRefused, match=f"CPUs {missing}"):
        pin_process([missing], child.pid)
    # The kernel accepts this set without an error, and leaves out the CPUs that it cannot give.
    with pytest.raises(PinningRefused, match=f"CPUs {missing}: its cpuset does not hold them"):
        pin_process([*cpus, missing], child.pid)


def test_a_process_that_has_ended_is_an_error(child: subprocess.Popen[bytes]) -> None:
    child.kill()
    child.wait()
    for call in (check_affinity, repin, pin_process):
        with pytest.raises(ProcessLookupError, match=str(child.pid)):
            call([0], child.pid)
