"""Big machines, as files of a /sys/devices tree."""

from collections.abc import Iterable
from pathlib import Path

from cluster.cores import (
    Core,
    Quota,
    Topology,
    UsableCores,
    format_cpus,
    read_topology,
)


class Sysfs:
    """A /sys/devices tree, written file by file as a machine would show it."""

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


def two_sockets(sysfs: Sysfs) -> Topology:
    """Two sockets of 16 cores and 32 threads; as on most Xeons, thread n + 32 is the sibling of thread n."""
    sysfs.online("0-63")
    for socket, cpus in enumerate(("0-15,32-47", "16-31,48-63")):
        sysfs.node(socket, cpus)
        for first in range(16 * socket, 16 * socket + 16):
            sysfs.core((first, first + 32), package=socket, llc=cpus)
    return read_topology(sysfs.root)


def hybrid(sysfs: Sysfs) -> Topology:
    """8 performance cores of two threads (0-15) and 16 efficiency cores (16-31), as in a Core i9-13900K."""
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
