"""What of the machine this process may use: its CPU affinity, and its cgroup's CPU quota."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from cluster.cores.topology import Core, Topology, format_cpus, read_topology

PROC_CGROUP = Path("/proc/self/cgroup")
CGROUPS = Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True)
class Quota:
    """A cgroup v2 CPU bandwidth limit: `quota_us` of CPU time in every `period_us`, both in microseconds.

    `file` is the cpu.max that says so. Source: the kernel's Documentation/admin-guide/cgroup-v2.rst.
    """

    quota_us: int
    period_us: int
    file: Path

    @property
    def cpus(self) -> float:
        """The CPUs' worth of time it gives."""
        return self.quota_us / self.period_us

    @property
    def cores(self) -> int:
        """The whole cores that can run all the time under it, one thread each; 0 when it is less than one."""
        return self.quota_us // self.period_us

    def __str__(self) -> str:
        return f"the CPU quota of {self.cpus:g} in {self.file}"


@dataclass(frozen=True, slots=True)
class UsableCores:
    """The cores that this process may use.

    `cores` are those with a hardware thread among the CPUs `allowed`. The quota does not say which cores,
    only how many at a time: `count` is what is left with it.
    """

    topology: Topology
    allowed: frozenset[int]
    quota: Quota | None = None

    @property
    def cores(self) -> tuple[Core, ...]:
        """The cores with at least one allowed hardware thread, in the order of their ids."""
        return tuple(core for core in self.topology.cores if not self.allowed.isdisjoint(core.cpus))

    @property
    def count(self) -> int:
        """The cores that can be leased in all."""
        return len(self.cores) if self.quota is None else min(len(self.cores), self.quota.cores)

    def thread(self, core: Core) -> int:
        """The one hardware thread of `core` to pin to: the lowest allowed."""
        return min(self.allowed.intersection(core.cpus))

    def describe(self) -> str:
        """One line for people: the machine, then what of it is usable and which limit makes it so."""
        limits = []
        if len(self.cores) < len(self.topology.cores):
            limits.append(f"affinity {format_cpus(self.allowed)}")
        if self.quota is not None:
            limits.append(str(self.quota))
        reason = f" ({', '.join(limits)})" if limits else ""
        return f"{self.topology.describe()}; {self.count} usable{reason}"


def usable_cores() -> UsableCores:
    """The cores that this process may use now, from sysfs, its affinity and its cgroup.

    The affinity is that of the calling thread: ask before you pin it.
    """
    return UsableCores(read_topology(), frozenset(os.sched_getaffinity(0)), cgroup_quota())


def cgroup_quota(proc_cgroup: Path = PROC_CGROUP, cgroups: Path = CGROUPS) -> Quota | None:
    """The tightest cgroup v2 CPU quota between this process's own cgroup and the root; None without any.

    `proc_cgroup` is /proc/self/cgroup, and `cgroups` the place where cgroup v2 is mounted.
    """
    found = (_read_quota(folder / "cpu.max") for folder in _folders(proc_cgroup, cgroups))
    return min((quota for quota in found if quota), key=lambda quota: quota.cpus, default=None)


def _folders(proc_cgroup: Path, cgroups: Path) -> Iterator[Path]:
    try:
        lines = proc_cgroup.read_text().splitlines()
    except OSError:
        lines = []
    own = next((line.removeprefix("0::") for line in lines if line.startswith("0::")), "/")
    # A container without a cgroup namespace sees the host's path here, but its own cgroup at the mount point:
    # folders that do not exist have no quota, and the mount point itself is always looked at. A path that
    # climbs out of the namespace ("/../other") cannot be followed.
    parts = PurePosixPath(own).relative_to("/").parts
    inside = PurePosixPath(*parts) if ".." not in parts else PurePosixPath()
    for folder in (inside, *inside.parents):
        yield cgroups / folder


def _read_quota(file: Path) -> Quota | None:
    try:
        quota, period = file.read_text().split()
    except OSError:
        # The root cgroup has no cpu.max, nor has one without the cpu controller.
        return None
    return None if quota == "max" else Quota(int(quota), int(period), file)
