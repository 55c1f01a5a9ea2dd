"""All routers name the same owner, owners are even, and a change moves few keys."""

from collections import Counter
from itertools import islice

from deployments.common.prefix import BLOCK_TOKENS, block_keys
from deployments.routing.owner_ring import OwnerRing

KEYS = [block_keys([number] * BLOCK_TOKENS)[0] for number in range(3000)]


def ring(*names: str) -> OwnerRing:
    made = OwnerRing()
    for name in names:
        made.add(name)
    return made


def owner(of: OwnerRing, key: bytes) -> str:
    return next(of.owners(key))


def test_owners_do_not_depend_on_the_order_in_which_replicas_came() -> None:
    names = [f"r{number}" for number in range(30)]
    first, second = ring(*names), ring("gone", *reversed(names))
    second.remove("gone")
    owners = [owner(first, key) for key in KEYS]
    assert owners == [owner(second, key) for key in KEYS]
    shares = Counter(owners)
    assert len(shares) == 30 and max(shares.values()) < 2 * len(KEYS) / 30


def test_a_replica_that_joins_takes_keys_only_for_itself() -> None:
    names = [f"r{number}" for number in range(10)]
    before = ring(*names)
    owners = [owner(before, key) for key in KEYS]
    before.add("new")
    moved = [now for key, was in zip(KEYS, owners, strict=True) if (now := owner(before, key)) != was]
    assert set(moved) == {"new"} and len(moved) < len(KEYS) / 5
    before.remove("new")
    assert [owner(before, key) for key in KEYS] == owners


def test_the_next_owner_takes_over() -> None:
    three = ring("a", "b", "c")
    for key in KEYS[:50]:
        first, second, third = three.owners(key)
        assert {first, second, third} == {"a", "b", "c"}
        two = ring(second, third)
        assert list(islice(two.owners(key), 2)) == [second, third]
    assert list(ring().owners(KEYS[0])) == []
