"""Which of the free cores a lease takes."""

from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence

from cluster.cores.topology import Core

# What cores can have in common, the tightest first. A last-level cache counts within its NUMA node only,
# because with sub-NUMA clustering one cache spans two nodes, and memory matters more to decoding than the
# cache does.
_LEVELS: tuple[Callable[[Core], Hashable], ...] = (
    lambda core: (core.package, core.node, core.llc),
    lambda core: (core.package, core.node),
    lambda core: core.node,
    lambda core: core.package,
    lambda core: None,
)


def choose_cores(free: Iterable[Core], count: int) -> tuple[Core, ...]:
    """Choose `count` of the `free` cores, always the same ones for the same input.

    Performance cores before efficiency cores, and both only where neither kind alone is enough: one engine
    step lasts as long as its slowest thread. Within that, from the smallest group of free cores that holds
    them all, a last-level cache before a NUMA node before a socket, so that large groups stay whole for
    larger leases.
    ValueError when there are fewer than `count`.
    """
    performance: list[Core] = []
    efficiency: list[Core] = []
    for core in sorted(free, key=lambda core: core.id):
        (efficiency if core.efficiency else performance).append(core)
    if not 1 <= count <= len(performance) + len(efficiency):
        raise ValueError(f"{count} cores asked for, {len(performance) + len(efficiency)} given to choose from")
    if count <= len(performance):
        chosen = _place(performance, count)
    elif count <= len(efficiency):
        chosen = _place(efficiency, count)
    else:
        chosen = performance + _place(efficiency, count - len(performance))
    return tuple(sorted(chosen, key=lambda core: core.id))


def _place(cores: Sequence[Core], count: int) -> list[Core]:
    sizes = [Counter(level(core) for core in cores) for level in _LEVELS]
    for depth, level in enumerate(_LEVELS):
        holding = [group for group in _groups(cores, level) if len(group) >= count]
        if not holding:
            continue
        # The best fit here; among equals the one whose surroundings are the fullest already.
        around = list(zip(_LEVELS, sizes, strict=True))[depth:]
        best = min(holding, key=lambda group: [size[key(group[0])] for key, size in around])
        if depth == 0:
            return best[:count]
        # No tighter group holds them all, so the fewest such groups: the largest as a whole, then the rest
        # the same way.
        whole = max(_groups(best, _LEVELS[depth - 1]), key=len)
        taken = set(whole)
        return whole + _place([core for core in best if core not in taken], count - len(whole))
    raise AssertionError("the last level is one group of all the cores")


def _groups(cores: Sequence[Core], level: Callable[[Core], Hashable]) -> list[list[Core]]:
    groups: dict[Hashable, list[Core]] = defaultdict(list)
    for core in cores:
        groups[level(core)].append(core)
    return list(groups.values())
