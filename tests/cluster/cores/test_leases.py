"""Leases of whole cores between real processes, with real locks, on an invented machine of 16 cores."""

import fcntl
import itertools
import os
import pickle
import select
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest

from cluster.cores import (
    Core,
    CoreLease,
    HeldCore,
    LeasesUnavailable,
    NotEnoughCores,
    Quota,
    Topology,
    UsableCores,
    count_free,
    held_cores,
    lease_cores,
    sweep,
)

# 16 cores of two threads in 2 caches. Child processes build the same one from this text.
MACHINE = """
from pathlib import Path
from cluster.cores import *
usable = UsableCores(
    Topology(tuple(Core((n, n + 16), llc=n // 8 * 8) for n in range(16))), frozenset(range(32))
)
"""
USABLE = UsableCores(Topology(tuple(Core((n, n + 16), llc=n // 8 * 8) for n in range(16))), frozenset(range(32)))

WORKERS, ROUNDS = 50, 6
WORKER = (
    MACHINE
    + """
import contextlib, os, random, sys, time
directory, marks, number, rounds = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
choice = random.Random(number)

@contextlib.contextmanager
def marked(lease):
    # A core's file exists while a process holds the core; a second holder ends with FileExistsError.
    begin = time.monotonic_ns()
    files = [marks / str(cpu) for cpu in lease.cpus]
    for file in files:
        os.close(os.open(file, os.O_CREAT | os.O_EXCL))
    yield
    for file in files:
        file.unlink()
    end = time.monotonic_ns()
    for cpu in lease.cpus:
        print(cpu, begin, end)

def leased():
    while True:
        try:
            return lease_cores(choice.randint(1, 3), directory, owner=f"worker-{number}", usable=usable)
        except NotEnoughCores:
            os.sched_yield()

print("ready", flush=True)
sys.stdin.read()
for _ in range(rounds):
    with leased() as lease, marked(lease):
        # While it holds these cores, it tries to lease more, and often gets none.
        with contextlib.suppress(NotEnoughCores):
            with lease_cores(2, directory, owner=f"worker-{number}", usable=usable) as more, marked(more):
                pass
    if number % 5 == 0:
        sweep(directory)
"""
)

HOLDER = (
    MACHINE
    + """
import sys
lease = lease_cores(int(sys.argv[2]), Path(sys.argv[1]), owner="holder", usable=usable)
print(*lease.cpus, flush=True)
sys.stdin.read()
"""
)

PARENT = (
    MACHINE
    + """
import subprocess, sys
lease = lease_cores(2, Path(sys.argv[1]), owner="replica", usable=usable)
engine = subprocess.Popen(["cat"], stdout=subprocess.DEVNULL, pass_fds=lease.pass_fds)
stranger = subprocess.Popen(["cat"], stdout=subprocess.DEVNULL, close_fds=False)
if sys.argv[2] == "release":
    lease.release()
print(engine.pid, stranger.pid, flush=True)
engine.wait()
"""
)


def spawn(program: str, *arguments: object) -> subprocess.Popen[str]:
    # Without site the interpreter starts in half the time; the leases need the standard library alone.
    return subprocess.Popen(
        [sys.executable, "-S", "-c", program, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        cwd=Path(__file__).parents[3],
    )


def pipe(stream: IO[str] | None) -> IO[str]:
    assert stream is not None
    return stream


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "run" / "leases"


@pytest.fixture
def holder(directory: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that has leased 14 of the 16 cores."""
    with spawn(HOLDER, directory, 14) as process:
        assert len(pipe(process.stdout).readline().split()) == 14
        yield process
        process.kill()


def lease(count: int, directory: Path, usable: UsableCores = USABLE, owner: str = "test") -> CoreLease:
    return lease_cores(count, directory, owner=owner, usable=usable)


def cpus(held: list[HeldCore]) -> list[int]:
    return [core.cpus[0] for core in held]


def test_a_lease_is_of_whole_cores_with_one_thread_each(directory: Path) -> None:
    with lease(3, directory) as first, lease(2, directory) as second:
        assert first.cpus == (0, 1, 2)
        assert second.cpus == (3, 4)
        assert [core.cpus for core in held_cores(directory)] == [(n, n + 16) for n in range(5)]
        assert count_free(directory, usable=USABLE) == 11


def test_by_default_a_lease_is_of_cores_that_this_process_may_use(directory: Path) -> None:
    before = count_free(directory)
    with lease_cores(1, directory, owner="test") as granted:
        assert set(granted.cpus) <= os.sched_getaffinity(0)
        assert count_free(directory) == before - 1


def test_a_lease_pins_to_threads_that_are_allowed(directory: Path) -> None:
    usable = UsableCores(USABLE.topology, frozenset({3, 16, 21, 5}))
    with lease(3, directory, usable) as granted:
        assert granted.cpus == (3, 5, 16)


def test_two_views_of_one_core_are_one_core(directory: Path) -> None:
    with lease(1, directory, UsableCores(USABLE.topology, frozenset({0}))):
        with pytest.raises(NotEnoughCores):
            lease(1, directory, UsableCores(USABLE.topology, frozenset({16})))
        # The first thread of core 0 goes offline, so the kernel shows the core under another number.
        renamed = Topology((Core((16,)), *USABLE.topology.cores[1:]))
        with lease(1, directory, UsableCores(renamed, USABLE.allowed)) as other:
            assert other.cpus == (1,)


def test_cores_to_avoid_are_not_taken(directory: Path) -> None:
    with lease_cores(2, directory, owner="test", usable=USABLE, avoid=(0, 17)) as granted:
        assert granted.cpus == (2, 3)
    assert count_free(directory, usable=USABLE, avoid=range(12)) == 4
    with pytest.raises(NotEnoughCores, match=r"CPUs to be avoided: 0-14\."):
        lease_cores(2, directory, owner="test", usable=USABLE, avoid=range(15))


def test_released_cores_are_free_at_once_and_release_may_be_repeated(directory: Path) -> None:
    granted = lease(16, directory)
    granted.release()
    granted.release()
    assert granted.pass_fds == ()
    assert held_cores(directory) == []
    lease(16, directory).release()


def test_a_lease_ends_with_its_block_even_on_an_error(directory: Path) -> None:
    with pytest.raises(RuntimeError), lease(2, directory):
        raise RuntimeError("the engine did not start")
    assert held_cores(directory) == []


def test_a_refused_lease_takes_nothing(directory: Path) -> None:
    open_before = len(list(Path("/proc/self/fd").iterdir()))
    with lease(10, directory):
        for _ in range(3):
            with pytest.raises(NotEnoughCores):
                lease(7, directory)
        assert len(held_cores(directory)) == 10
    assert len(list(Path("/proc/self/fd").iterdir())) == open_before


def test_the_error_names_the_holder_and_what_to_do(directory: Path, holder: subprocess.Popen[str]) -> None:
    with pytest.raises(NotEnoughCores) as caught:
        lease(3, directory)
    assert (caught.value.asked, caught.value.usable, caught.value.free) == (3, 16, 2)
    assert str(caught.value) == (
        "3 whole cores asked for, 2 free of 16 that this process may use. "
        f"Held: 14 whole cores by 'holder' (process {holder.pid}, CPUs 0-13,16-29). "
        "Run fewer replicas, or give each fewer cores."
    )


def test_the_error_crosses_a_process_boundary(directory: Path) -> None:
    with lease(16, directory), pytest.raises(NotEnoughCores) as caught:
        lease(1, directory)
    again = pickle.loads(pickle.dumps(caught.value))
    assert isinstance(again, NotEnoughCores)
    assert str(again) == str(caught.value)
    assert again.held == caught.value.held


def test_a_cpu_quota_bounds_all_leases_together(directory: Path) -> None:
    quota = Quota(550_000, 100_000, Path("/sys/fs/cgroup/cpu.max"))
    usable = UsableCores(USABLE.topology, USABLE.allowed, quota)
    with lease(3, directory, usable), lease(1, directory, usable):
        assert count_free(directory, usable=usable) == 1
        with pytest.raises(NotEnoughCores) as caught:
            lease(2, directory, usable)
    assert str(caught.value).startswith(
        "2 whole cores asked for, 1 free of 5 that this process may use. "
        "The limit is the CPU quota of 5.5 in /sys/fs/cgroup/cpu.max. Held: 4 whole cores by 'test'"
    )


def test_a_quota_of_less_than_a_core_is_refused_with_the_reason(directory: Path) -> None:
    quota = Quota(50_000, 100_000, Path("/sys/fs/cgroup/cpu.max"))
    with pytest.raises(NotEnoughCores) as caught:
        lease(1, directory, UsableCores(USABLE.topology, USABLE.allowed, quota))
    assert str(caught.value) == (
        "1 whole core asked for, 0 free of 0 that this process may use. "
        "The limit is the CPU quota of 0.5 in /sys/fs/cgroup/cpu.max. "
        "A replica needs a whole core: raise the container's CPU limit or widen its cpuset."
    )


def test_a_lease_of_no_cores_is_a_mistake(directory: Path) -> None:
    with pytest.raises(ValueError, match="at least one core"):
        lease(0, directory)


def test_kill_9_frees_the_cores_at_once(directory: Path, holder: subprocess.Popen[str]) -> None:
    assert {(core.owner, core.pid) for core in held_cores(directory)} == {("holder", holder.pid)}
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert held_cores(directory) == []
    lease(16, directory).release()


@pytest.mark.parametrize("end", ["kill", "release"])
def test_a_lease_passed_to_a_child_lasts_as_long_as_the_child(directory: Path, end: str) -> None:
    with spawn(PARENT, directory, end) as parent:
        engine, stranger = map(int, pipe(parent.stdout).readline().split())
        watched = os.pidfd_open(engine)
        try:
            if end == "kill":
                parent.kill()
                parent.wait()
            assert [(core.cpus[0], core.owner) for core in held_cores(directory)] == [
                (0, "replica"),
                (1, "replica"),
            ]
            with pytest.raises(NotEnoughCores):
                lease(15, directory)
            # The other child, which was given no lease, does not keep the cores when the engine ends.
            os.kill(engine, signal.SIGKILL)
            assert select.select([watched], [], [], 30)[0], "the engine did not end"
            assert Path(f"/proc/{stranger}").exists()
            assert held_cores(directory) == []
        finally:
            os.close(watched)


def test_the_content_of_a_file_counts_only_while_it_is_locked(directory: Path) -> None:
    lease(2, directory).release()
    file = directory / "core-0.lock"
    assert '"owner": "test"' in file.read_text()
    with file.open("r+") as other:
        other.write("not JSON")
        other.flush()
        assert held_cores(directory) == []
        fcntl.flock(other, fcntl.LOCK_EX)
        assert held_cores(directory) == [HeldCore((0,), "unknown", 0, 0.0)]
        with lease(1, directory) as granted:
            assert granted.cpus == (1,)


def test_reading_leases_creates_no_files(directory: Path) -> None:
    assert held_cores(directory) == []
    assert count_free(directory, usable=USABLE) == 16
    assert not directory.exists()


def test_the_folder_and_its_files_are_for_this_user_alone(directory: Path) -> None:
    with lease(1, directory):
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700
        assert {stat.S_IMODE(file.stat().st_mode) for file in directory.iterdir()} == {0o600}


def test_a_folder_that_cannot_be_used_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(LeasesUnavailable, match=r"cannot lease cores in .*/file: .*local folder"):
        lease(1, tmp_path / "file")


def test_the_wait_for_a_stuck_allocation_is_limited(directory: Path) -> None:
    lease(1, directory).release()
    with (directory / "allocate.lock").open() as stuck:
        fcntl.flock(stuck, fcntl.LOCK_EX)
        for call in (
            lambda: lease_cores(1, directory, owner="test", usable=USABLE, wait_s=0.02),
            lambda: held_cores(directory, wait_s=0.02),
        ):
            with pytest.raises(LeasesUnavailable, match=rf"locked for 0.02 s, by process {os.getpid()} "):
                call()


def test_fifty_processes_never_share_a_core_and_all_get_theirs(tmp_path: Path, directory: Path) -> None:
    marks = tmp_path / "marks"
    marks.mkdir()
    workers = [spawn(WORKER, directory, marks, number, ROUNDS) for number in range(WORKERS)]
    try:
        for worker in workers:
            assert pipe(worker.stdout).readline() == "ready\n"
        for worker in workers:
            pipe(worker.stdin).close()
            worker.stdin = None
        times: dict[int, list[tuple[int, int]]] = {}
        for worker in workers:
            output, _ = worker.communicate(timeout=120)
            assert worker.returncode == 0
            lines = [tuple(map(int, line.split())) for line in output.splitlines()]
            assert len(lines) >= ROUNDS
            for cpu, begin, end in lines:
                times.setdefault(cpu, []).append((begin, end))
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
            pipe(worker.stdout).close()
    # The processes did run at the same time: more cores were in use than the 3 + 2 that a single process takes.
    spans_of_all = [span for spans in times.values() for span in spans]
    changes = sorted([(begin, 1) for begin, _ in spans_of_all] + [(end, -1) for _, end in spans_of_all])
    assert max(itertools.accumulate(change for _, change in changes)) > 5
    for spans in times.values():
        spans.sort()
        assert all(end <= begin for (_, end), (begin, _) in itertools.pairwise(spans))
    assert held_cores(directory) == []


def test_sweep_deletes_files_of_free_cores(directory: Path) -> None:
    sweep(directory)
    assert not directory.exists()
    with lease(3, directory) as granted:
        lease(2, directory).release()
        sweep(directory)
        assert len(list(directory.glob("core-*.lock"))) == 3
        assert [core.cpus for core in held_cores(directory)] == [core.cpus for core in granted.cores]
    sweep(directory)
    assert not directory.exists()
