"""The machine's physical cores, and what they share, as the Linux kernel shows them in sysfs.

Sources: the kernel's Documentation/admin-guide/cputopology.rst and
Documentation/ABI/testing/sysfs-devices-system-cpu.
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

SYSFS = Path("/sys/devices")

# Below this part of the fastest core's capacity or clock, a core is an efficiency core. Favoured cores of one
# kind differ by up to some 10 % (Turbo Boost Max 3.0, amd-pstate preferred cores); the two kinds by 20 % and
# more.
_EFFICIENCY_BELOW = 0.85


@dataclass(frozen=True, slots=True)
class Core:
    """One physical core.

    `cpus` are the kernel's numbers of its online hardware threads, ascending. `llc` is the lowest CPU number
    that shares its last-level cache, and so names that cache.
    """

    cpus: tuple[int, ...]
    package: int = 0
    node: int = 0
    llc: int = 0
    efficiency: bool = False

    @property
    def id(self) -> int:
        """The lowest CPU number of the core: unlike the kernel's core_id, unique on the machine."""
        return self.cpus[0]


@dataclass(frozen=True, slots=True)
class Topology:
    """The online cores of a machine, in the order of their ids."""

    cores: tuple[Core, ...]

    def describe(self) -> str:
        """`2 sockets, 32 cores, 64 threads, 2 last-level caches, 2 NUMA nodes`."""
        efficiency = sum(core.efficiency for core in self.cores)
        kinds = f" ({len(self.cores) - efficiency} performance, {efficiency} efficiency)" if efficiency else ""
        return ", ".join(
            (
                _counted(len({core.package for core in self.cores}), "socket"),
                _counted(len(self.cores), "core") + kinds,
                _counted(sum(len(core.cpus) for core in self.cores), "thread"),
                _counted(len({core.llc for core in self.cores}), "last-level cache"),
                _counted(len({core.node for core in self.cores}), "NUMA node"),
            )
        )


def read_topology(sysfs: Path = SYSFS) -> Topology:
    """Read the online cores from `sysfs` (the folder /sys/devices).

    Containers and virtual machines hide parts of it. What is missing is taken as: every CPU a core of its
    own, all in package 0 and node 0, one last-level cache a package, all of one kind.
    """
    root = sysfs / "system" / "cpu"
    cpus = _online(root)
    nodes = _nodes(sysfs / "system" / "node")
    efficiency = _efficiency_cpus(sysfs, cpus)
    packages = {cpu: _read_int(root / f"cpu{cpu}/topology/physical_package_id") or 0 for cpu in cpus}
    threads: dict[int, list[int]] = {}
    for cpu in cpus:
        siblings = _siblings(root / f"cpu{cpu}/topology") & cpus
        threads.setdefault(min(siblings | {cpu}), []).append(cpu)
    cores = []
    for first, members in sorted(threads.items()):
        package = packages[first]
        sharing = _last_level_cache(root / f"cpu{first}/cache") & cpus
        cores.append(
            Core(
                cpus=tuple(sorted(members)),
                package=package,
                node=nodes.get(first, 0),
                llc=min(sharing) if sharing else min(cpu for cpu in cpus if packages[cpu] == package),
                efficiency=first in efficiency,
            )
        )
    return Topology(tuple(cores))


def parse_cpus(text: str) -> frozenset[int]:
    """CPU numbers of a kernel list such as `0-3,8`; ValueError for anything else."""
    cpus: set[int] = set()
    for part in filter(None, text.strip().split(",")):
        first, _, last = part.partition("-")
        cpus.update(range(int(first), int(last or first) + 1))
    return frozenset(cpus)


def format_cpus(cpus: Iterable[int]) -> str:
    """The kernel's short form of a set of CPU numbers: `0-3,8`."""
    ranges: list[list[int]] = []
    for cpu in sorted(set(cpus)):
        if ranges and ranges[-1][1] == cpu - 1:
            ranges[-1][1] = cpu
        else:
            ranges.append([cpu, cpu])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in ranges)


def _online(root: Path) -> frozenset[int]:
    listed = _read_cpus(root / "online")
    if listed:
        return listed
    folders = (entry for entry in root.glob("cpu[0-9]*") if entry.name[3:].isdecimal())
    # The CPU that cannot be taken offline (often cpu0) has no `online` file of its own.
    online = frozenset(int(entry.name[3:]) for entry in folders if _read_int(entry / "online") != 0)
    return online or frozenset(os.sched_getaffinity(0))


def _siblings(topology: Path) -> frozenset[int]:
    # core_cpus_list is the name since Linux 5.3, and thread_siblings_list the older one, now deprecated.
    return _read_cpus(topology / "core_cpus_list") or _read_cpus(topology / "thread_siblings_list")


def _nodes(root: Path) -> dict[int, int]:
    nodes = ((int(entry.name[4:]), entry) for entry in root.glob("node[0-9]*") if entry.name[4:].isdecimal())
    return {cpu: node for node, entry in nodes for cpu in _read_cpus(entry / "cpulist")}


def _last_level_cache(root: Path) -> frozenset[int]:
    level, sharing = 0, frozenset[int]()
    for index in sorted(root.glob("index[0-9]*")):
        here = _read_int(index / "level") or 0
        if here > level and _read(index / "type") in ("Unified", "Data"):
            level, sharing = here, _read_cpus(index / "shared_cpu_list")
    return sharing


def _efficiency_cpus(sysfs: Path, cpus: frozenset[int]) -> frozenset[int]:
    # Intel's hybrid processors have one performance-monitoring device for each kind of core, which says it
    # outright.
    performance, efficiency = _read_cpus(sysfs / "cpu_core/cpus"), _read_cpus(sysfs / "cpu_atom/cpus")
    if performance and efficiency:
        return efficiency
    for name in ("cpu_capacity", "cpufreq/cpuinfo_max_freq"):
        read = {cpu: _read_int(sysfs / f"system/cpu/cpu{cpu}" / name) for cpu in cpus}
        speeds = {cpu: speed for cpu, speed in read.items() if speed}
        if len(speeds) == len(cpus):
            fastest = max(speeds.values())
            slow = frozenset(cpu for cpu, speed in speeds.items() if speed < _EFFICIENCY_BELOW * fastest)
            if slow:
                return slow
    return frozenset()


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        # A missing file is usual, and some files answer with an error of their driver instead (EINVAL, EIO).
        return ""


def _read_int(path: Path) -> int | None:
    text = _read(path)
    return int(text) if text.isdecimal() else None


def _read_cpus(path: Path) -> frozenset[int]:
    return parse_cpus(_read(path))


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
