"""Reading a machine's sockets, cores, caches and NUMA nodes."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.cores import (
    Core,
    format_cpus,
    parse_cpus,
    read_topology,
)
from tests.cluster.cores.machines import Sysfs, epyc, hybrid, ids, two_sockets


def test_two_sockets_with_smt(sysfs: Sysfs) -> None:
    topology = two_sockets(sysfs)
    assert topology.describe() == "2 sockets, 32 cores, 64 threads, 2 last-level caches, 2 NUMA nodes"
    assert topology.cores[0] == Core(cpus=(0, 32), package=0, node=0, llc=0)
    assert topology.cores[31] == Core(cpus=(31, 63), package=1, node=1, llc=16)


def test_the_sibling_list_may_have_its_old_name(sysfs: Sysfs) -> None:
    sysfs.online("0-3")
    for cpu in range(4):
        sysfs.write(f"system/cpu/cpu{cpu}/topology/thread_siblings_list", f"{cpu % 2},{cpu % 2 + 2}")
    assert [core.cpus for core in read_topology(sysfs.root).cores] == [(0, 2), (1, 3)]


@pytest.mark.parametrize("source", ["devices", "capacity", "frequency"])
def test_efficiency_cores_are_recognized(sysfs: Sysfs, source: str) -> None:
    if source == "devices":
        sysfs.write("cpu_core/cpus", "0-15")
        sysfs.write("cpu_atom/cpus", "16-31")
    for cpu in range(32):
        if source == "capacity":
            sysfs.write(f"system/cpu/cpu{cpu}/cpu_capacity", 1024 if cpu < 16 else 560)
        if source == "frequency":
            # Two favoured cores clock higher than the other performance cores.
            mhz = 5800 if cpu < 4 else 5500 if cpu < 16 else 4300
            sysfs.write(f"system/cpu/cpu{cpu}/cpufreq/cpuinfo_max_freq", mhz * 1000)
    topology = hybrid(sysfs)
    assert ids(core for core in topology.cores if core.efficiency) == list(range(16, 32))
    assert topology.describe() == (
        "1 socket, 24 cores (8 performance, 16 efficiency), 32 threads, 1 last-level cache, 1 NUMA node"
    )


def test_favoured_cores_do_not_make_the_others_efficiency_cores(sysfs: Sysfs) -> None:
    sysfs.online("0-3")
    for cpu, mhz in enumerate((5200, 5200, 4900, 4900)):
        sysfs.core((cpu,))
        sysfs.write(f"system/cpu/cpu{cpu}/cpufreq/cpuinfo_max_freq", mhz * 1000)
    assert not any(core.efficiency for core in read_topology(sysfs.root).cores)


def test_epyc_has_a_cache_for_each_complex(sysfs: Sysfs) -> None:
    topology = epyc(sysfs)
    assert topology.describe() == "1 socket, 64 cores, 64 threads, 8 last-level caches, 4 NUMA nodes"
    assert [(core.node, core.llc) for core in topology.cores[::8]] == [
        (0, 0), (0, 8), (1, 16), (1, 24), (2, 32), (2, 40), (3, 48), (3, 56),
    ]  # fmt: skip


def test_a_virtual_machine_that_shows_only_its_online_cpus(sysfs: Sysfs) -> None:
    sysfs.online("0-3")
    topology = read_topology(sysfs.root)
    assert topology.cores == tuple(Core(cpus=(cpu,)) for cpu in range(4))
    assert topology.describe() == "1 socket, 4 cores, 4 threads, 1 last-level cache, 1 NUMA node"


def test_without_a_list_of_online_cpus_the_folders_count(sysfs: Sysfs) -> None:
    for cpu in range(3):
        sysfs.core((cpu,))
    sysfs.write("system/cpu/cpu1/online", 0)
    sysfs.write("system/cpu/cpu2/online", 1)
    (sysfs.root / "system/cpu/cpuidle").mkdir()
    assert ids(read_topology(sysfs.root).cores) == [0, 2]


def test_without_any_sysfs_the_affinity_counts(tmp_path: Path) -> None:
    assert ids(read_topology(tmp_path / "nothing").cores) == sorted(os.sched_getaffinity(0))


def test_without_shown_caches_a_socket_is_one_group(sysfs: Sysfs) -> None:
    sysfs.online("0-3")
    for cpu in range(4):
        sysfs.write(f"system/cpu/cpu{cpu}/topology/physical_package_id", cpu // 2)
    assert [core.llc for core in read_topology(sysfs.root).cores] == [0, 0, 2, 2]


def test_an_instruction_cache_is_not_a_last_level_cache(sysfs: Sysfs) -> None:
    sysfs.online("0-1")
    for cpu in range(2):
        for index, (level, kind, shared) in enumerate(((2, "Unified", str(cpu)), (3, "Instruction", "0-1"))):
            sysfs.write(f"system/cpu/cpu{cpu}/cache/index{index}/level", level)
            sysfs.write(f"system/cpu/cpu{cpu}/cache/index{index}/type", kind)
            sysfs.write(f"system/cpu/cpu{cpu}/cache/index{index}/shared_cpu_list", shared)
    assert [core.llc for core in read_topology(sysfs.root).cores] == [0, 1]


def test_offline_cpus_are_left_out(sysfs: Sysfs) -> None:
    two_sockets(sysfs)
    # Core 0 has lost both its threads, core 1 its first; other lists may still name them.
    sysfs.online("2-31,33-63")
    topology = read_topology(sysfs.root)
    assert topology.describe() == "2 sockets, 31 cores, 61 threads, 2 last-level caches, 2 NUMA nodes"
    assert Core(cpus=(33,), package=0, node=0, llc=2) in topology.cores


def test_a_node_with_only_memory_has_no_cores(sysfs: Sysfs) -> None:
    sysfs.online("0-1")
    sysfs.node(0, "")
    sysfs.node(1, "0-1")
    assert {core.node for core in read_topology(sysfs.root).cores} == {1}


@given(st.frozensets(st.integers(0, 300)))
def test_cpu_lists_survive_formatting_and_parsing(cpus: frozenset[int]) -> None:
    assert parse_cpus(format_cpus(cpus)) == cpus


def test_cpu_lists_are_short() -> None:
    assert format_cpus((8, 0, 2, 1, 3)) == "0-3,8"
    with pytest.raises(ValueError):
        parse_cpus("all")
