"""Leases of whole cores: no two on a machine ever share one.

Each core has a lock file in a folder that every process leasing cores here agrees on, and a lease is an
exclusive flock(2) on the files of its cores. The kernel drops the locks when the last process that has them
open ends, however it ends, so nothing is ever left to clean up. Choosing happens under one more lock,
`allocate.lock`, held for milliseconds: a lease is taken whole or not at all, and two processes never wait for
each other's cores.

The folder must be on a local disk: over NFS, flock would also keep out the cores of other machines.
"""

import os
from collections.abc import Collection, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from cluster.cores.choice import choose_cores
from cluster.cores.limits import UsableCores, usable_cores
from cluster.cores.locks import ALLOCATION_WAIT_S, HeldCore, allocating, lock_cores, read_held
from cluster.cores.topology import Core, format_cpus


class NotEnoughCores(Exception):
    """Fewer whole cores are free than were asked for.

    `asked`, `usable` (this process may lease in all) and `free` (it could lease now) are counts of cores.
    """

    def __init__(
        self,
        asked: int,
        free: int,
        usable: UsableCores,
        held: tuple[HeldCore, ...] = (),
        avoid: frozenset[int] = frozenset(),
    ) -> None:
        # All of them as args: this error leaves a Ray actor pickled, and pickle makes it again from its args.
        super().__init__(asked, free, usable, held, avoid)
        self.asked = asked
        self.free = free
        self.usable = usable.count
        self.held = held
        self._allowance = usable
        self._avoid = avoid

    def __str__(self) -> str:
        text = f"{_cores(self.asked)} asked for, {self.free} free of {self.usable} that this process may use."
        quota = self._allowance.quota
        if quota is not None and quota.cores < len(self._allowance.cores):
            text += f" The limit is {quota}."
        if self.held:
            text += f" Held: {_holders(self.held)}."
        if self._avoid:
            text += f" CPUs to be avoided: {format_cpus(self._avoid)}."
        if not self.usable:
            return f"{text} A replica needs a whole core: raise the container's CPU limit or widen its cpuset."
        return f"{text} Run fewer replicas, or give each fewer cores."


@dataclass(slots=True, eq=False)
class CoreLease:
    """Whole cores that are this holder's alone until `release`, or until the process ends.

    `cpus` has one CPU number a core, its lowest allowed hardware thread, ascending: pin to these. Use as a
    context manager. A process forked without exec holds the lease too until it ends; one started with exec
    does not, unless it is given `pass_fds`.
    """

    cores: tuple[Core, ...]
    cpus: tuple[int, ...]
    owner: str
    _fds: tuple[int, ...]

    @property
    def pass_fds(self) -> tuple[int, ...]:
        """File descriptors of the locks, for `subprocess.Popen(pass_fds=...)`; none after `release`.

        The lease then lasts until both have let go of it, so the cores of an engine that outlives its replica
        stay its own.
        """
        return self._fds

    def release(self) -> None:
        """Let go of the cores; a second call does nothing."""
        fds, self._fds = self._fds, ()
        for fd in fds:
            # Only close: an unlock would take it from a child that was given the descriptor, too.
            os.close(fd)

    def __enter__(self) -> "CoreLease":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def lease_cores(
    count: int,
    directory: Path,
    *,
    owner: str,
    usable: UsableCores | None = None,
    avoid: Collection[int] = (),
    wait_s: float = ALLOCATION_WAIT_S,
) -> CoreLease:
    """Lease `count` whole cores at once; `choose_cores` says which.

    `directory` holds the locks, and is created for this user alone. `owner` is the name that others are told
    while it lasts. `usable` is what to choose from: what this process may use now, unless given. A core with
    a CPU in `avoid` is not taken. The CPU quota bounds all the leases in `directory` together. Never waits
    for a core; `wait_s` bounds the wait for others that are choosing theirs.
    NotEnoughCores when too few are free; LeasesUnavailable when the folder cannot be used.
    """
    if count < 1:
        raise ValueError(f"a lease has at least one core, not {count}")
    usable = usable or usable_cores()
    with allocating(directory, wait_s, create=True):
        held = read_held(directory)
        candidates = _free(usable, held, avoid)
        free = min(len(candidates), _room(usable, held))
        if count > free:
            raise NotEnoughCores(count, free, usable, tuple(held), frozenset(avoid))
        cores = choose_cores(candidates, count)
        fds = lock_cores(cores, directory, owner)
    return CoreLease(cores, tuple(sorted(usable.thread(core) for core in cores)), owner, fds)


def held_cores(directory: Path, *, wait_s: float = ALLOCATION_WAIT_S) -> list[HeldCore]:
    """The cores that are leased in `directory` now, by CPU number; errors as in `lease_cores`."""
    with suppress(FileNotFoundError), allocating(directory, wait_s, create=False):
        return read_held(directory)
    return []


def count_free(
    directory: Path,
    *,
    usable: UsableCores | None = None,
    avoid: Collection[int] = (),
    wait_s: float = ALLOCATION_WAIT_S,
) -> int:
    """How many cores `lease_cores` with the same arguments could give at most, now."""
    usable = usable or usable_cores()
    held = held_cores(directory, wait_s=wait_s)
    return min(len(_free(usable, held, avoid)), _room(usable, held))


def _free(usable: UsableCores, held: Iterable[HeldCore], avoid: Collection[int]) -> list[Core]:
    # By every thread, not by id: a core's lowest thread, which names its lock, may have gone offline since.
    taken = {*avoid, *(cpu for core in held for cpu in core.cpus)}
    return [core for core in usable.cores if taken.isdisjoint(core.cpus)]


def _room(usable: UsableCores, held: Collection[HeldCore]) -> int:
    """The cores that the CPU quota leaves, or all of them without one."""
    return len(usable.cores) if usable.quota is None else max(0, usable.quota.cores - len(held))


def _holders(held: Iterable[HeldCore]) -> str:
    by_holder: dict[tuple[str, int], list[HeldCore]] = {}
    for core in held:
        by_holder.setdefault((core.owner, core.pid), []).append(core)
    return "; ".join(
        f"{_cores(len(cores))} by {owner!r} "
        f"(process {pid}, CPUs {format_cpus(cpu for core in cores for cpu in core.cpus)})"
        for (owner, pid), cores in by_holder.items()
    )


def _cores(number: int) -> str:
    return f"{number} whole core" if number == 1 else f"{number} whole cores"
