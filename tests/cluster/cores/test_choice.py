"""Which cores a lease chooses."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.cores import (
    Core,
    choose_cores,
    format_cpus,
)
from tests.cluster.cores.machines import Sysfs, epyc, hybrid, ids, two_sockets


def test_small_leases_fill_one_cache_before_the_next(sysfs: Sysfs) -> None:
    free = list(epyc(sysfs).cores)
    leased = []
    for count in (3, 4, 8, 1, 16):
        chosen = choose_cores(free, count)
        leased.append(format_cpus(ids(chosen)))
        free = [core for core in free if core not in chosen]
    # 3 and 4 fill 7 of the 8 cores of the first cache; 8 take the other cache of that node, 1 the core that is left in
    # the first cache, and 16 a whole node.
    assert leased == ["0-2", "3-6", "8-15", "7", "16-31"]


def test_a_lease_takes_the_smallest_cache_with_enough_cores(sysfs: Sysfs) -> None:
    leased = {0, 16, 17, 18, 40, 41, 42, 43}
    free = [core for core in epyc(sysfs).cores if core.id not in leased]
    assert ids(choose_cores(free, 4)) == [44, 45, 46, 47]
    assert ids(choose_cores(free, 5)) == [19, 20, 21, 22, 23]
    assert ids(choose_cores(free, 6)) == [1, 2, 3, 4, 5, 6]


def test_more_than_a_cache_stays_within_one_node_in_the_fewest_caches(sysfs: Sysfs) -> None:
    free = [core for core in epyc(sysfs).cores if core.id not in {0, 1, 2, 8, 16, 17, 18}]
    # Node 0 has 5 + 7 free cores and node 1 has 5 + 8: node 0 is the smallest with room for 10.
    assert ids(choose_cores(free, 10)) == [3, 4, 5, 9, 10, 11, 12, 13, 14, 15]
    assert ids(choose_cores(free, 13)) == list(range(19, 32))


def test_more_than_a_node_takes_whole_nodes_first(sysfs: Sysfs) -> None:
    free = [core for core in epyc(sysfs).cores if core.id >= 4]
    assert Counter(core.node for core in choose_cores(free, 24)) == {1: 16, 0: 8}


def test_more_than_a_socket_takes_cores_of_the_next_socket(sysfs: Sysfs) -> None:
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
    """The free cores of a random machine: sockets, nodes, caches, SMT and kinds of cores in any layout."""
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
    free = draw(st.sets(st.sampled_from(cores), min_size=1))
    return draw(st.permutations(sorted(free, key=lambda core: core.id)))


@settings(max_examples=300, deadline=None)
@given(free_cores(), st.data())
def test_the_chosen_cores_are_free_enough_and_as_close_as_possible(free: list[Core], data: st.DataObject) -> None:
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
        chosen_size = caches[chosen[0].node, chosen[0].llc]
        assert chosen_size == min(size for size in caches.values() if size >= count)
