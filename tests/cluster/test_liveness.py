"""Replicas that hang are killed, and no other process is."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from cluster.launch.watch import killing_hung_processes
from cluster.liveness import SILENCE_S, START_S, HungProcesses
from tests.cluster.test_supervisor import Clock
from tests.conftest import records_of, wait_for

_REPLICA = """
import asyncio, sys
from pathlib import Path
from cluster.liveness import show_life
asyncio.run(show_life(Path(sys.argv[1])))
"""
_WORKER = """
import sys, threading
from pathlib import Path
from cluster import liveness
liveness.INTERVAL_S = 0.005
liveness.show_worker_life(Path(sys.argv[1]))
threading.Event().wait()
"""
"""Its event loop does not start."""
_SIDECAR = """
from cluster import liveness
liveness.SILENCE_S = 1
from deployments.observability.exporter import main
main(0)
"""


@pytest.fixture
def replica(tmp_path: Path) -> Iterator[psutil.Process]:
    """A process that shows life in the folder of the test."""
    with subprocess.Popen([sys.executable, "-c", _REPLICA, str(tmp_path)]) as process:
        wait_for(lambda: signs(tmp_path))
        yield psutil.Process(process.pid)
        process.kill()


@contextmanager
def worker(folder: Path, title: str, program: str = _WORKER) -> Iterator[psutil.Process]:
    """A process with this title that runs the program, and ends by itself or with the block."""
    with subprocess.Popen([title, "-c", program, str(folder)], executable=sys.executable) as process:
        try:
            yield psutil.Process(process.pid)
        finally:
            process.kill()


def signs(folder: Path) -> list[Path]:
    return [*folder.glob("*.alive"), *folder.glob("*.worker")]


def suspend(replica: psutil.Process) -> None:
    replica.suspend()
    wait_for(lambda: replica.status() == psutil.STATUS_STOPPED)


def ended(replica: psutil.Process) -> Callable[[], bool]:
    return lambda: replica.status() == psutil.STATUS_ZOMBIE


def look(hung: HungProcesses, clock: Clock, seconds: float) -> None:
    """Looks once a second for so long."""
    for _ in range(int(seconds)):
        clock.now += 1
        hung.kill()


def test_a_replica_that_hangs_is_killed_and_its_file_removed(tmp_path: Path, replica: psutil.Process) -> None:
    hung = HungProcesses(tmp_path, clock := Clock())
    suspend(replica)
    look(hung, clock, SILENCE_S)
    assert signs(tmp_path) and replica.status() == psutil.STATUS_STOPPED
    look(hung, clock, 2)
    wait_for(ended(replica))
    assert not signs(tmp_path)


def test_a_replica_that_lives_is_spared_whatever_the_wall_clock_does(tmp_path: Path, replica: psutil.Process) -> None:
    hung = HungProcesses(tmp_path, clock := Clock())
    [sign] = signs(tmp_path)
    os.utime(sign, (0, 0))
    look(hung, clock, SILENCE_S - 1)
    wait_for(lambda: sign.stat().st_mtime > 0)
    look(hung, clock, SILENCE_S - 1)
    assert signs(tmp_path) and replica.is_running()


def test_after_a_pause_of_the_supervisor_silence_counts_anew(tmp_path: Path, replica: psutil.Process) -> None:
    hung = HungProcesses(tmp_path, clock := Clock())
    suspend(replica)
    look(hung, clock, SILENCE_S - 1)
    clock.now += 3600
    look(hung, clock, SILENCE_S)
    assert replica.status() == psutil.STATUS_STOPPED
    look(hung, clock, 2)
    wait_for(ended(replica))


def test_a_later_process_of_the_same_number_is_spared(tmp_path: Path, replica: psutil.Process) -> None:
    [sign] = signs(tmp_path)
    suspend(replica)
    pid, _, started = sign.stem.partition("-")
    left = sign.rename(sign.with_stem(f"{pid}-{int(started) - 1}"))
    other = tmp_path / "1-x.alive"
    other.touch()
    hung = HungProcesses(tmp_path, clock := Clock())
    look(hung, clock, SILENCE_S + 2)
    assert not left.exists() and not other.exists()
    assert replica.status() == psutil.STATUS_STOPPED


def test_nobody_is_killed_where_signs_cannot_be_written(tmp_path: Path, replica: psutil.Process) -> None:
    """As on a disk that has become read-only."""
    hung = HungProcesses(tmp_path, clock := Clock())
    suspend(replica)
    away = tmp_path.rename(tmp_path.with_name("away"))
    for _ in range(int(SILENCE_S) + 2):
        clock.now += 1
        with pytest.raises(FileNotFoundError):
            hung.kill()
    away.rename(tmp_path)
    look(hung, clock, SILENCE_S)
    assert replica.status() == psutil.STATUS_STOPPED


def look_at_its_signs(hung: HungProcesses, clock: Clock, folder: Path, seconds: float) -> None:
    """As `look`, but each time at a new sign, until the process is killed."""
    for _ in range(int(seconds)):
        before = [sign.stat().st_mtime_ns for sign in signs(folder)]
        wait_for(lambda before=before: before != [sign.stat().st_mtime_ns for sign in signs(folder)])  # type: ignore[misc]
        look(hung, clock, 1)
        if not signs(folder):
            break


def test_a_replica_that_hangs_at_its_start_is_killed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    hung = HungProcesses(tmp_path, clock := Clock())
    with worker(tmp_path, "ray::ServeReplica:dray:router") as replica:
        wait_for(lambda: signs(tmp_path))
        look_at_its_signs(hung, clock, tmp_path, START_S)
        assert replica.is_running() and not records_of(caplog, "dray.liveness")
        look_at_its_signs(hung, clock, tmp_path, 3)
        wait_for(ended(replica))
    [line] = [record.message for record in records_of(caplog, "dray.liveness")]
    assert line.startswith("ray::ServeReplica:dray:router") and "hangs at its start" in line
    assert not signs(tmp_path)


def test_a_replica_that_is_stopped_at_its_start_has_as_much_time(tmp_path: Path) -> None:
    """As one whose other threads wait while a large file is read."""
    hung = HungProcesses(tmp_path, clock := Clock())
    with worker(tmp_path, "ray::ServeReplica:dray:router") as replica:
        wait_for(lambda: signs(tmp_path))
        suspend(replica)
        look(hung, clock, START_S)
        assert replica.status() == psutil.STATUS_STOPPED
        look(hung, clock, 3)
        wait_for(ended(replica))


def test_a_worker_that_waits_for_work_is_spared(tmp_path: Path) -> None:
    hung = HungProcesses(tmp_path, clock := Clock())
    with worker(tmp_path, "ray::IDLE") as idle:
        wait_for(lambda: signs(tmp_path))
        look_at_its_signs(hung, clock, tmp_path, START_S + 5)
        assert idle.is_running() and idle.status() != psutil.STATUS_ZOMBIE
    look(hung, clock, SILENCE_S + 2)
    assert not signs(tmp_path)


def test_any_worker_that_hangs_is_killed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As Serve's controller, without which nothing is replaced."""
    hung = HungProcesses(tmp_path, clock := Clock())
    with worker(tmp_path, "ray::ServeController") as controller:
        wait_for(lambda: signs(tmp_path))
        suspend(controller)
        look(hung, clock, SILENCE_S)
        assert controller.status() == psutil.STATUS_STOPPED
        look(hung, clock, 2)
        wait_for(ended(controller))
    [line] = [record.message for record in records_of(caplog, "dray.liveness")]
    assert line.startswith("ray::ServeController")


def test_a_replica_that_has_shown_life_may_take_any_time_to_end(tmp_path: Path) -> None:
    hung = HungProcesses(tmp_path, clock := Clock())
    with worker(tmp_path, "ray::ServeReplica:dray:router") as replica:
        wait_for(lambda: signs(tmp_path))
        [sign] = signs(tmp_path)
        loop = sign.with_suffix(".alive")
        loop.touch()
        look(hung, clock, 1)
        loop.unlink()
        look_at_its_signs(hung, clock, tmp_path, START_S + 5)
        assert replica.is_running() and replica.status() != psutil.STATUS_ZOMBIE


def test_a_replica_that_ends_leaves_no_file(tmp_path: Path, replica: psutil.Process) -> None:
    replica.send_signal(signal.SIGINT)
    wait_for(ended(replica))
    assert not signs(tmp_path)


def test_the_launcher_looks_by_itself(tmp_path: Path, replica: psutil.Process, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cluster.liveness.SILENCE_S", 1.0)
    suspend(replica)
    with killing_hung_processes(tmp_path):
        wait_for(ended(replica))


def test_the_sidecar_of_a_pod_looks_by_itself(tmp_path: Path, replica: psutil.Process) -> None:
    suspend(replica)
    environment = os.environ | {"PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    with subprocess.Popen([sys.executable, "-c", _SIDECAR], env=environment) as sidecar:
        try:
            wait_for(ended(replica))
        finally:
            sidecar.kill()
