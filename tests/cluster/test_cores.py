"""What the machine has, what this process may use of it, which cores a lease chooses, and pinning to them."""

import os
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.cores import (
    Core,
    PinningRefused,
    Quota,
    Topology,
    UsableCores,
    cgroup_quota,
    check_affinity,
    choose_cores,
    format_cpus,
    parse_cpus,
    pin_process,
    read_topology,
    repin,
    usable_cores,
)


class Sysfs:
    """A /sys/devices as a machine would show it, written file by file."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def write(self, path: str, content: object) -> None:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{content}\n")

    def core(self, cpus: Iterable[int], *, package: int = 0, llc: str = "", siblings: str = "") -> None:
        """One physical core with its threads; `llc` is the list of CPUs that share its L3."""
        threads = tuple(cpus)
        for cpu in threads:
            here = f"system/cpu/cpu{cpu}"
            self.write(f"{here}/topology/physical_package_id", package)
            self.write(f"{here}/topology/core_cpus_list", siblings or format_cpus(threads))
            for index, (level, kind) in enumerate(((1, "Data"), (1, "Instruction"), (2, "Unified"))):
                self.write(f"{here}/cache/index{index}/level", level)
                self.write(f"{here}/cache/index{index}/type", kind)
                self.write(f"{here}/cache/index{index}/shared_cpu_list", format_cpus(threads))
            if llc:
                self.write(f"{here}/cache/index3/level", 3)
                self.write(f"{here}/cache/index3/type", "Unified")
                self.write(f"{here}/cache/index3/shared_cpu_list", llc)

    def online(self, cpus: str) -> None:
        self.write("system/cpu/online", cpus)

    def node(self, node: int, cpus: str) -> None:
        self.write(f"system/node/node{node}/cpulist", cpus)


@pytest.fixture
def sysfs(tmp_path: Path) -> Sysfs:
    return Sysfs(tmp_path / "devices")


def two_sockets(sysfs: Sysfs) -> Topology:
    """Two sockets of 16 cores and 32 threads; as on most Xeons, thread n + 32 is the sibling of thread n."""
    sysfs.online("0-63")
    for socket, cpus in enumerate(("0-15,32-47", "16-31,48-63")):
        sysfs.node(socket, cpus)
        for first in range(16 * socket, 16 * socket + 16):
            sysfs.core((first, first + 32), package=socket, llc=cpus)
    return read_topology(sysfs.root)


def hybrid(sysfs: Sysfs) -> Topology:
    """8 performance cores of two threads (0-15), and 16 efficiency cores (16-31), as a Core i9-13900K has."""
    sysfs.online("0-31")
    sysfs.node(0, "0-31")
    for first in range(0, 16, 2):
        sysfs.core((first, first + 1), llc="0-31")
    for cpu in range(16, 32):
        sysfs.core((cpu,), llc="0-31")
    return read_topology(sysfs.root)


def epyc(sysfs: Sysfs) -> Topology:
    """64 cores in 8 core complexes of one L3 each, in 4 NUMA nodes (NPS4), without SMT."""
    sysfs.online("0-63")
    for node in range(4):
        sysfs.node(node, f"{16 * node}-{16 * node + 15}")
    for cpu in range(64):
        sysfs.core((cpu,), llc=f"{cpu // 8 * 8}-{cpu // 8 * 8 + 7}")
    return read_topology(sysfs.root)


def ids(cores: Iterable[Core]) -> list[int]:
    return [core.id for core in cores]


def all_of(topology: Topology, quota: Quota | None = None) -> UsableCores:
    return UsableCores(topology, frozenset(cpu for core in topology.cores for cpu in core.cpus), quota)


# What the machine has


def test_two_sockets_with_smt(sysfs: Sysfs) -> None:
    topology = two_sockets(sysfs)
    assert topology.describe() == "2 sockets, 32 cores, 64 threads, 2 last-level caches, 2 NUMA nodes"
    assert topology.cores[0] == Core(cpus=(0, 32), package=0, node=0, llc=0)
    assert topology.cores[31] == Core(cpus=(31, 63), package=1, node=1, llc=16)


def test_the_old_name_of_the_sibling_list_will_do(sysfs: Sysfs) -> None:
    sysfs.online("0-3")
    for cpu in range(4):
        sysfs.write(f"system/cpu/cpu{cpu}/topology/thread_siblings_list", f"{cpu % 2},{cpu % 2 + 2}")
    assert [core.cpus for core in read_topology(sysfs.root).cores] == [(0, 2), (1, 3)]


@pytest.mark.parametrize("source", ["devices", "capacity", "frequency"])
def test_hybrid_tells_efficiency_cores(sysfs: Sysfs, source: str) -> None:
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


def test_without_a_list_of_online_cpus_the_folders_tell(sysfs: Sysfs) -> None:
    for cpu in range(3):
        sysfs.core((cpu,))
    sysfs.write("system/cpu/cpu1/online", 0)
    sysfs.write("system/cpu/cpu2/online", 1)
    (sysfs.root / "system/cpu/cpuidle").mkdir()
    assert ids(read_topology(sysfs.root).cores) == [0, 2]


def test_without_any_sysfs_the_affinity_tells(tmp_path: Path) -> None:
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


def test_offline_cpus_are_not_there(sysfs: Sysfs) -> None:
    two_sockets(sysfs)
    # Core 0 has lost both its threads, core 1 its first; other lists may still name them.
    sysfs.online("2-31,33-63")
    topology = read_topology(sysfs.root)
    assert topology.describe() == "2 sockets, 31 cores, 61 threads, 2 last-level caches, 2 NUMA nodes"
    assert Core(cpus=(33,), package=0, node=0, llc=2) in topology.cores


def test_a_node_of_memory_only_has_no_cores(sysfs: Sysfs) -> None:
    sysfs.online("0-1")
    sysfs.node(0, "")
    sysfs.node(1, "0-1")
    assert {core.node for core in read_topology(sysfs.root).cores} == {1}


@given(st.frozensets(st.integers(0, 300)))
def test_cpu_lists_come_back_as_they_were(cpus: frozenset[int]) -> None:
    assert parse_cpus(format_cpus(cpus)) == cpus


def test_cpu_lists_are_short() -> None:
    assert format_cpus((8, 0, 2, 1, 3)) == "0-3,8"
    with pytest.raises(ValueError):
        parse_cpus("all")


# What this process may use


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
    """The quota with `own` as /proc/self/cgroup, and `limits` as cpu.max of cgroups by their path."""
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


# Which cores are chosen


def test_small_leases_fill_one_cache_before_the_next(sysfs: Sysfs) -> None:
    free = list(epyc(sysfs).cores)
    taken = []
    for count in (3, 4, 8, 1, 16):
        chosen = choose_cores(free, count)
        taken.append(format_cpus(ids(chosen)))
        free = [core for core in free if core not in chosen]
    # 4 do not fit beside 3 + 4 = 7 < 8 cores; 8 take a whole cache of the node begun, 16 a whole node.
    assert taken == ["0-2", "3-6", "8-15", "7", "16-31"]


def test_the_smallest_cache_that_holds_it_is_taken(sysfs: Sysfs) -> None:
    gone = {0, 16, 17, 18, 40, 41, 42, 43}
    free = [core for core in epyc(sysfs).cores if core.id not in gone]
    assert ids(choose_cores(free, 4)) == [44, 45, 46, 47]
    assert ids(choose_cores(free, 5)) == [19, 20, 21, 22, 23]
    assert ids(choose_cores(free, 6)) == [1, 2, 3, 4, 5, 6]


def test_more_than_a_cache_stays_within_one_node_in_the_fewest_caches(sysfs: Sysfs) -> None:
    free = [core for core in epyc(sysfs).cores if core.id not in {0, 1, 2, 8, 16, 17, 18}]
    # Node 0 has 5 + 7 left and node 1 has 5 + 8: node 0 is the smaller that holds 10.
    assert ids(choose_cores(free, 10)) == [3, 4, 5, 9, 10, 11, 12, 13, 14, 15]
    assert ids(choose_cores(free, 13)) == list(range(19, 32))


def test_more_than_a_node_takes_whole_nodes_first(sysfs: Sysfs) -> None:
    free = [core for core in epyc(sysfs).cores if core.id >= 4]
    assert Counter(core.node for core in choose_cores(free, 24)) == {1: 16, 0: 8}


def test_more_than_a_socket_is_given_where_it_is_asked_for(sysfs: Sysfs) -> None:
    assert Counter(core.package for core in choose_cores(two_sockets(sysfs).cores, 20)) == {0: 16, 1: 4}


def test_performance_cores_come_first_and_are_not_mixed(sysfs: Sysfs) -> None:
    sysfs.write("cpu_core/cpus", "0-15")
    sysfs.write("cpu_atom/cpus", "16-31")
    cores = hybrid(sysfs).cores
    assert ids(choose_cores(cores, 8)) == list(range(0, 16, 2))
    assert ids(choose_cores(cores, 9)) == list(range(16, 25))
    assert ids(choose_cores(cores[4:], 4)) == [8, 10, 12, 14]
    assert ids(choose_cores(cores[5:], 4)) == [16, 17, 18, 19]
    assert ids(choose_cores(cores, 20)) == [*range(0, 16, 2), *range(16, 28)]


@pytest.mark.parametrize("count", [0, -1, 3])
def test_a_count_that_cannot_be_chosen_is_an_error(count: int) -> None:
    with pytest.raises(ValueError, match="given to choose from"):
        choose_cores([Core((0,)), Core((1,))], count)


@st.composite
def free_cores(draw: st.DrawFn) -> list[Core]:
    """What others left of any machine: sockets, nodes, caches, SMT and kinds in any layout."""
    packages, nodes, caches, size, threads = (draw(st.integers(1, top)) for top in (2, 3, 3, 5, 2))
    total = packages * nodes * caches * size
    efficiency_from = draw(st.integers(0, total)) if draw(st.booleans()) else total
    cores = [
        Core(
            cpus=tuple(range(n, total * threads, total)),
            package=n // (nodes * caches * size),
            node=n // (caches * size),
            llc=n // size * size,
            efficiency=n >= efficiency_from,
        )
        for n in range(total)
    ]
    left = draw(st.sets(st.sampled_from(cores), min_size=1))
    return draw(st.permutations(sorted(left, key=lambda core: core.id)))


@settings(max_examples=300, deadline=None)
@given(free_cores(), st.data())
def test_the_choice_is_free_complete_and_as_near_as_can_be(free: list[Core], data: st.DataObject) -> None:
    count = data.draw(st.integers(1, len(free)))
    chosen = choose_cores(free, count)
    assert len(set(chosen)) == len(chosen) == count
    assert set(chosen) <= set(free)
    assert chosen == choose_cores(sorted(free, key=lambda core: core.id), count)

    performance = [core for core in free if not core.efficiency]
    efficiency = [core for core in free if core.efficiency]
    if count <= len(performance):
        pool = performance
    elif count <= len(efficiency):
        pool = efficiency
    else:
        assert set(performance) <= set(chosen)
        return
    assert set(chosen) <= set(pool)
    for level in (lambda core: core.package, lambda core: core.node, lambda core: (core.node, core.llc)):
        sizes = Counter(level(core) for core in pool)
        if max(sizes.values()) >= count:
            assert len({level(core) for core in chosen}) == 1
    caches = Counter((core.node, core.llc) for core in pool)
    if max(caches.values()) >= count:
        home = caches[chosen[0].node, chosen[0].llc]
        assert home == min(size for size in caches.values() if size >= count)


# Pinning, on this machine's own CPUs


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


needs_two_cpus = pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one CPU cannot be left")


@needs_two_cpus
def test_a_thread_that_was_moved_is_seen_and_pinned_again(child: subprocess.Popen[bytes]) -> None:
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
    # Pinning anew is for a process that inherited its affinity from a narrower parent.
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


def test_cpus_that_this_machine_does_not_give_are_refused(child: subprocess.Popen[bytes]) -> None:
    cpus = os.sched_getaffinity(0)
    beyond = max(cpus) + 500
    with pytest.raises(PinningRefused, match=f"CPUs {beyond}"):
        pin_process([beyond], child.pid)
    # The kernel takes this set without an error, and leaves out what it cannot give.
    with pytest.raises(PinningRefused, match=f"CPUs {beyond}: its cpuset does not hold them"):
        pin_process([*cpus, beyond], child.pid)


def test_a_process_that_has_ended_is_an_error(child: subprocess.Popen[bytes]) -> None:
    child.kill()
    child.wait()
    for call in (check_affinity, repin, pin_process):
        with pytest.raises(ProcessLookupError, match=str(child.pid)):
            call([0], child.pid)
