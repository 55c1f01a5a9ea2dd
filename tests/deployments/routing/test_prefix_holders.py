"""The tree of prompts knows what each replica holds, within bounds, and forgets what replicas have evicted."""

import random
from collections import defaultdict

from hypothesis import given, settings
from hypothesis import strategies as st

from deployments.common.prefix import BLOCK_TOKENS, block_keys
from deployments.routing.prefix_holders import PackedKeys, PrefixHolders, first_blocks, pack
from tests.deployments.routing.clock import Clock


def prompt(*parts: tuple[int, int]) -> PackedKeys:
    """The keys of a prompt made of (token, number of blocks)."""
    return pack(block_keys([token for token, blocks in parts for _ in range(blocks * BLOCK_TOKENS)]))


def held(holders: PrefixHolders, keys: PackedKeys, replica: int) -> int:
    """Blocks of the prompt that the replica is known to hold."""
    return holders.match(keys).tokens(replica) // BLOCK_TOKENS


SYSTEM = (1, 20)


@settings(deadline=None)
@given(st.lists(st.tuples(st.lists(st.integers(0, 2), min_size=1, max_size=9), st.integers(0, 3)), max_size=40))
def test_no_block_is_claimed_that_a_replica_has_never_had(sent: list[tuple[list[int], int]]) -> None:
    holders = PrefixHolders()
    replicas = [holders.join() for _ in range(4)]
    had: defaultdict[int, set[PackedKeys]] = defaultdict(set)
    for tokens, replica in sent:
        keys = prompt(*((token, 1) for token in tokens))
        holders.add(keys, replicas[replica])
        had[replica].update(first_blocks(keys, count + 1) for count in range(len(tokens)))
        assert held(holders, keys, replicas[replica]) == len(tokens), "what was just computed is known"
        for other, number in enumerate(replicas):
            claimed = held(holders, keys, number)
            assert claimed == 0 or first_blocks(keys, claimed) in had[other]


def test_conversations_share_their_system_prompt_and_keep_their_own_replicas() -> None:
    holders = PrefixHolders()
    first, second, third = (holders.join() for _ in range(3))
    holders.add(prompt(SYSTEM, (2, 5)), first)
    holders.add(prompt(SYSTEM, (3, 5)), second)
    assert holders.blocks == 20 + 5 + 5
    assert held(holders, prompt(SYSTEM, (2, 9)), first) == 25
    assert held(holders, prompt(SYSTEM, (2, 9)), second) == 20
    assert held(holders, prompt(SYSTEM, (2, 9)), third) == 0
    assert holders.match(prompt(SYSTEM, (2, 9))).longest(lambda _: True, 2) == [first]
    assert holders.match(prompt(SYSTEM, (2, 9))).longest(lambda one: one != first, 2) == [second]
    assert sorted(holders.match(prompt(SYSTEM, (4, 9))).longest(lambda _: True, 2)) == [first, second]


def test_the_turns_of_a_conversation_are_one_run() -> None:
    holders = PrefixHolders()
    replica = holders.join()
    memory = []
    for turn in range(1, 9):
        # Each prompt ends with the opening of its answer, which the next turn has not.
        holders.add(prompt(SYSTEM, (5, 4 * turn), (9, 1)), replica)
        memory.append(holders.memory)
    assert held(holders, prompt(SYSTEM, (5, 40)), replica) == 20 + 32
    assert memory[-1] - memory[0] == 7 * 4 * 8, "only keys were added"


def test_what_a_replica_has_evicted_is_not_held() -> None:
    clock = Clock()
    holders = PrefixHolders(clock)
    replica, other = holders.join(), holders.join()
    for number in range(4):
        clock.now += 1
        for one in (replica, other):
            holders.add(prompt(SYSTEM, (10 + number, 3)), one)
    holders.report(replica, 1000, clock.now - 2)
    assert [held(holders, prompt(SYSTEM, (10 + number, 3)), replica) for number in range(4)] == [20, 20, 23, 23]
    assert [held(holders, prompt(SYSTEM, (10 + number, 3)), other) for number in range(4)] == [23] * 4
    holders.report(replica, 1000, clock.now)
    assert held(holders, prompt(SYSTEM, (13, 3)), replica) == 0
    holders.add(prompt(SYSTEM, (10, 3)), replica)
    assert held(holders, prompt(SYSTEM, (10, 3)), replica) == 0, "used at the time of the report"
    clock.now += 1
    holders.add(prompt(SYSTEM, (10, 3)), replica)
    assert held(holders, prompt(SYSTEM, (10, 3)), replica) == 23


def test_a_replica_that_left_holds_nothing() -> None:
    holders = PrefixHolders()
    replica, other = holders.join(), holders.join()
    holders.add(prompt(SYSTEM), replica)
    holders.leave(replica)
    assert holders.match(prompt(SYSTEM)).longest(lambda _: True, 2) == []
    holders.add(prompt(SYSTEM), replica)
    holders.add(prompt(SYSTEM), other)
    assert holders.match(prompt(SYSTEM)).longest(lambda _: True, 2) == [other]


def test_it_never_keeps_more_blocks_than_the_caches_have() -> None:
    holders = PrefixHolders()
    replicas = [holders.join() for _ in range(3)]
    for replica in replicas:
        holders.report(replica, 100, 0.0)
    for number in range(200):
        holders.add(prompt(SYSTEM, (100 + number, 7)), replicas[number % 3])
        assert holders.blocks <= 300
    assert held(holders, prompt(SYSTEM, (299, 7)), replicas[199 % 3]) == 27
    assert held(holders, prompt(SYSTEM, (100, 7)), replicas[0]) == 20, "the shared start was used to the last"
    for replica in replicas:
        holders.leave(replica)
    assert holders.blocks == holders.memory == 0


def test_memory_is_bounded_whatever_the_number_of_replicas() -> None:
    limit = 200_000
    chance = random.Random(0)
    holders = PrefixHolders(max_bytes=limit)
    replicas = [holders.join() for _ in range(300)]
    for number in range(3000):
        system = (1 + number % 5, 20)
        holders.add(prompt(system, (100 + number, 1 + number % 9)), chance.choice(replicas))
        if number % 100 == 0:  # replicas come and go
            holders.leave(replicas.pop(0))
            replicas.append(holders.join())
    assert limit / 2 < holders.memory <= limit
    most_used = holders.match(prompt((1 + 2999 % 5, 20)))
    assert len(most_used.longest(lambda _: True, 2)) == 2
