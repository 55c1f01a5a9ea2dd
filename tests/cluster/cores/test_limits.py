"""The part of the machine that this process may use."""

import os
from pathlib import Path

import pytest

from cluster.cores import (
    Quota,
    UsableCores,
    cgroup_quota,
    usable_cores,
)
from tests.cluster.cores.machines import Sysfs, all_of, epyc, ids, two_sockets


def test_a_core_counts_with_any_thread_and_is_pinned_to_the_lowest(sysfs: Sysfs) -> None:
    usable = UsableCores(two_sockets(sysfs), frozenset({0, 32, 33, 47, 20, 500}))
    assert ids(usable.cores) == [0, 1, 15, 20]
    assert [usable.thread(core) for core in usable.cores] == [0, 33, 47, 20]
    assert usable.count == 4
    assert usable.describe() == (
        "2 sockets, 32 cores, 64 threads, 2 last-level caches, 2 NUMA nodes; 4 usable (affinity 0,20,32-33,47,500)"
    )


def test_this_machine_has_a_usable_core() -> None:
    usable = usable_cores()
    assert usable.allowed == os.sched_getaffinity(0)
    assert 1 <= usable.count <= len(usable.allowed)
    assert usable.describe().startswith(usable.topology.describe())


def cgroups(tmp_path: Path, own: str, limits: dict[str, str]) -> Quota | None:
    """The quota with `own` as /proc/self/cgroup. limits: the cpu.max of each cgroup, by its path."""
    proc = tmp_path / "cgroup"
    proc.write_text(own)
    root = tmp_path / "fs"
    for path, limit in limits.items():
        (root / path).mkdir(parents=True, exist_ok=True)
        (root / path / "cpu.max").write_text(limit + "\n")
    return cgroup_quota(proc, root)


@pytest.mark.parametrize(
    ("limits", "cores"),
    [
        ({"a": "max 100000", "a/b": "max 100000"}, None),
        ({"a": "max 100000", "a/b": "150000 100000"}, 1),
        ({"a": "400000 100000", "a/b": "max 100000"}, 4),
        ({"a": "200000 100000", "a/b": "800000 100000"}, 2),
        ({"a": "100000 50000", "a/b": "290000 100000"}, 2),
        ({"a/b": "50000 100000"}, 0),
        ({"": "300000 100000"}, 3),
        ({"other": "100000 100000"}, None),
        ({}, None),
    ],
)
def test_the_tightest_quota_up_to_the_root_counts(tmp_path: Path, limits: dict[str, str], cores: int | None) -> None:
    quota = cgroups(tmp_path, "0::/a/b\n", limits)
    assert (quota and quota.cores) == cores


@pytest.mark.parametrize("own", ["0::/kubepods/pod1/box\n", "0::/../../elsewhere\n", "4:memory:/x\n", ""])
def test_a_container_finds_its_own_quota_at_the_mount_point(tmp_path: Path, own: str) -> None:
    quota = cgroups(tmp_path, own, {"": "250000 100000"})
    assert quota is not None
    assert (quota.cpus, quota.cores) == (2.5, 2)
    assert str(quota) == f"the CPU quota of 2.5 in {tmp_path}/fs/cpu.max"


def test_without_proc_there_is_no_quota(tmp_path: Path) -> None:
    assert cgroup_quota(tmp_path / "missing", tmp_path) is None


def test_a_quota_limits_the_count(sysfs: Sysfs) -> None:
    usable = all_of(epyc(sysfs), Quota(650_000, 100_000, Path("/sys/fs/cgroup/cpu.max")))
    assert usable.count == 6
    assert usable.describe().endswith("6 usable (the CPU quota of 6.5 in /sys/fs/cgroup/cpu.max)")
