"""Replicas are ranked by their cached prompts, their queued work and their speed."""

from collections import Counter

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployments.common.messages import (
    TYPICAL_COMPLETION_TOKENS,
    EngineRequest,
    PendingWork,
    ReplicaStats,
    Sampling,
)
from deployments.common.prefix import BLOCK_TOKENS, block_keys
from deployments.routing.fleet import Fleet, ReplicaState
from deployments.routing.policy import rank_replicas
from deployments.routing.prefix_holders import PackedKeys, PrefixMatch, pack
from tests.deployments.routing.clock import Clock

SYSTEM = list(range(20 * BLOCK_TOKENS))
IDLE = ReplicaStats(300, 60_000)
THIS_ROUTER = "this"


def replicas(*stats: ReplicaStats, clock: Clock | None = None) -> Fleet:
    fleet = Fleet(THIS_ROUTER, clock or Clock())
    for number, reported in enumerate(stats):
        fleet.join(f"r{number}").update(reported)
    return fleet


def assign(replica: ReplicaState, attempt_id: int, prompt: list[int], max_tokens: int = 0) -> None:
    request = EngineRequest(prompt, Sampling(max_tokens), attempt_id=attempt_id)
    replica.assign(request, packed(prompt))


def packed(prompt: list[int]) -> PackedKeys:
    return pack(block_keys(prompt))


def request_of(*tail: int, avoid: tuple[str, ...] = ()) -> EngineRequest:
    """A request that starts with the system prompt."""
    return EngineRequest([*SYSTEM, *tail, 7], Sampling(max_tokens=100), avoid_replicas=avoid)


def cost(replica: ReplicaState) -> int:
    """The cost of a request without a cached prefix."""
    request = EngineRequest([8] * len(request_of().prompt_ids), Sampling(max_tokens=100))
    return replica.cost(request, PrefixMatch((), {}))


def test_a_prompt_returns_to_the_replica_that_has_cached_its_start() -> None:
    states = replicas(*[IDLE] * 8)
    assign(states["r5"], 1, SYSTEM)
    states["r5"].finish(1)
    assert {rank_replicas(request_of(number), states)[0] for number in range(50)} == {"r5"}


def test_a_prompt_goes_elsewhere_when_too_much_is_queued_there() -> None:
    states = replicas(IDLE, IDLE)
    assign(states["r0"], 0, SYSTEM)
    states["r0"].finish(0)
    assign(states["r0"], 1, list(range(9000, 9000 + len(SYSTEM) // 2)))
    assert rank_replicas(request_of(1), states)[0] == "r0"
    assign(states["r0"], 2, list(range(7000, 7000 + len(SYSTEM))))
    assert rank_replicas(request_of(1), states)[0] == "r1"
    states["r0"].finish(2)
    assert rank_replicas(request_of(1), states)[0] == "r0"


def test_other_routers_work_counts_and_this_routers_counts_once() -> None:
    busy = ReplicaStats(300, 60_000, {"another": PendingWork(4000, 1000, 5)})
    assert rank_replicas(request_of(), replicas(busy, IDLE))[0] == "r1"
    states = replicas(
        ReplicaStats(300, 60_000, {THIS_ROUTER: PendingWork(4000, 1000, 5)}),
        ReplicaStats(300, 60_000, {"another": PendingWork(9)}),
    )
    assert cost(states["r0"]) == len(request_of().prompt_ids) < cost(states["r1"])


def test_other_routers_prompts_are_computed_as_time_passes() -> None:
    clock, busy = Clock(), ReplicaStats(300, 60_000, {"another": PendingWork(4000, 0, 0)})
    [replica] = replicas(busy, clock=clock).values()
    assert cost(replica) == len(request_of().prompt_ids) + 4000
    clock.now += 10
    replica.update(busy)
    assert cost(replica) == len(request_of().prompt_ids) + 1000
    clock.now += 10
    assert cost(replica) == len(request_of().prompt_ids)


def test_a_prompt_goes_to_the_replica_that_another_router_used_for_it() -> None:
    states = replicas(*[IDLE] * 8)
    located = msgspec.structs.replace(request_of(), prefix_replica="r6", prefix_tokens=len(SYSTEM))
    assert rank_replicas(located, states)[0] == "r6"
    assert rank_replicas(request_of(5), states)[0] == "r6", "the location is remembered"
    assert rank_replicas(msgspec.structs.replace(located, prefix_replica="gone"), states)[0] == "r6"


def test_a_computed_prompt_is_not_waited_for() -> None:
    [replica] = replicas(IDLE).values()
    idle = cost(replica)
    assign(replica, 41, [1] * 1000, max_tokens=100)
    in_prefill = cost(replica)
    replica.record_tokens(41, 1)
    decoding = cost(replica)
    assert in_prefill - decoding == pytest.approx(1000, abs=5)
    replica.record_tokens(41, 80)
    ending = cost(replica)
    assert idle < ending < decoding
    replica.finish(41)
    replica.record_tokens(41, 1)
    assert cost(replica) == idle


def test_a_prompt_goes_to_the_replica_where_it_delays_the_fewest_streams() -> None:
    stats = (
        ReplicaStats(300, 60_000, {"another": PendingWork(0, 8, 8)}),
        ReplicaStats(300, 60_000, {"another": PendingWork(0, 20, 1)}),
    )
    assert rank_replicas(request_of(), replicas(*stats))[0] == "r1"


def test_a_slow_replica_gets_less() -> None:
    states = replicas(IDLE, ReplicaStats(100, 60_000))
    chosen: Counter[str] = Counter()
    for number in range(400):
        prompt = [number] * 40
        [first, *_] = rank_replicas(EngineRequest(prompt, Sampling(max_tokens=100)), states)
        chosen[first] += 1
        assign(states[first], number, prompt, max_tokens=100)
    assert 2.5 < chosen["r0"] / chosen["r1"] < 3.5


def test_routers_that_know_nothing_of_each_other_agree() -> None:
    first_router, second_router = replicas(*[IDLE] * 9), replicas(*[IDLE] * 9)
    requests = [EngineRequest([number] * 100, Sampling(max_tokens=9)) for number in range(60)]
    owners = [rank_replicas(request, first_router)[0] for request in requests]
    assert owners == [rank_replicas(request, second_router)[0] for request in requests]
    assert len(set(owners)) > 6


def test_routers_agree_while_the_speeds_of_equal_nodes_are_measured_differently() -> None:
    first_router = replicas(*[ReplicaStats(speed, 60_000) for speed in (300, 330, 290, 310)])
    second_router = replicas(*[ReplicaStats(speed, 60_000) for speed in (320, 280, 330, 300)])
    requests = [EngineRequest([number] * 1000, Sampling(max_tokens=9)) for number in range(60)]
    owners = [rank_replicas(request, first_router)[0] for request in requests]
    assert owners == [rank_replicas(request, second_router)[0] for request in requests]
    assert len(set(owners)) == 4


def test_a_replica_that_failed_is_tried_last() -> None:
    states = replicas(IDLE, IDLE)
    assign(states["r0"], 1, SYSTEM)
    assert rank_replicas(request_of(avoid=("r0",)), states) == ["r1"]
    assert set(rank_replicas(request_of(avoid=("r0", "r1")), states)) == {"r0", "r1"}


def test_an_unresponsive_replica_is_tried_last() -> None:
    clock = Clock()
    states = replicas(IDLE, IDLE, clock=clock)
    assign(states["r0"], 1, SYSTEM)
    states["r0"].finish(1)
    states["r0"].probe_sent()
    clock.now += 2
    assert rank_replicas(request_of(), states)[0] == "r0"
    clock.now += 0.1
    states["r0"].probe_sent()  # a later probe does not make the first one younger
    assert rank_replicas(request_of(), states) == ["r1"]
    states["r0"].probe_acked()
    assert rank_replicas(request_of(), states)[0] == "r0"


def test_a_prefix_larger_than_the_replicas_cache_is_forgotten() -> None:
    states = replicas(ReplicaStats(300, 10 * BLOCK_TOKENS), IDLE)
    assign(states["r0"], 1, SYSTEM)
    assert states["r0"].cached_tokens(states.prefixes.match(packed(SYSTEM))) == 0


def test_few_of_many_replicas_are_compared_and_the_only_usable_one_is_found() -> None:
    states = replicas(*[IDLE] * 300)
    for number in range(100):
        assign(states[f"r{number}"], number, SYSTEM)
    names = list(states)
    assert len(rank_replicas(request_of(1), states)) <= 5
    assert rank_replicas(request_of(1), states, among={"r7", "stranger"}) == ["r7"]
    assert rank_replicas(request_of(1, avoid=tuple(names[:-1])), states) == [names[-1]]
    assert len(rank_replicas(request_of(1, avoid=tuple(names)), states)) > 1


def test_requests_with_one_system_prompt_spread_over_all_replicas_that_hold_it() -> None:
    states = replicas(*[IDLE] * 100)
    for number in range(40):
        assign(states[f"r{number}"], number, SYSTEM)
        states[f"r{number}"].finish(number)
    chosen: Counter[str] = Counter()
    for number in range(200):
        request = request_of(number)
        [first, *_] = rank_replicas(request, states)
        chosen[first] += 1
        assign(states[first], 1000 + number, request.prompt_ids, max_tokens=100)
    assert sum(count for name, count in chosen.items() if int(name[1:]) < 40) > 150
    assert max(chosen.values()) < 20


def test_a_prompt_that_a_replica_has_evicted_is_not_sent_there() -> None:
    now = Clock(5000.0)
    states = Fleet(THIS_ROUTER, Clock(), now)
    for number in range(8):
        states.join(f"r{number}").update(IDLE)
    assign(states["r5"], 1, SYSTEM)
    states["r5"].finish(1)
    assert rank_replicas(request_of(1), states)[0] == "r5"
    now.now += 60
    states["r5"].update(msgspec.structs.replace(IDLE, evicted_before=now.now - 1))
    assert states["r5"].cached_tokens(states.prefixes.match(packed(SYSTEM))) == 0
    assert len({rank_replicas(EngineRequest([*SYSTEM, number], Sampling(9)), states)[0] for number in range(9)}) == 1


def test_a_replica_with_a_free_place_goes_before_a_full_one() -> None:
    full = ReplicaStats(300, 60_000, {"another": PendingWork(0, 4, 4)}, max_num_seqs=4)
    free = ReplicaStats(300, 60_000, {"another": PendingWork(0, 600, 3)}, max_num_seqs=4)
    states = replicas(*[full] * 20, free)
    for number in range(20):
        assert rank_replicas(request_of(number), states)[0] == "r20"
    assert rank_replicas(request_of(), replicas(*[full] * 21)), "where all are full, the least bad one"


@given(
    st.lists(
        st.tuples(st.integers(0, 5), st.sampled_from(["assign", "record", "finish", "refused"]), st.integers(1, 300)),
        max_size=40,
    )
)
def test_the_cost_is_that_of_the_requests_that_still_run(events: list[tuple[int, str, int]]) -> None:
    [replica] = replicas(IDLE).values()
    left: dict[int, tuple[int, int]] = {}
    for at, (number, event, tokens) in enumerate(events):
        if event == "assign":
            prompt = [at] * tokens  # which nobody has cached
            assign(replica, number, prompt, max_tokens=2 * tokens)
            left[number] = tokens, 2 * tokens
        elif event == "record":
            replica.record_tokens(number, tokens)
            if number in left:
                left[number] = 0, left[number][1] - tokens
        else:
            replica.finish(number) if event == "finish" else replica.refused(number)
            left.pop(number, None)
    for max_tokens in (100, 1000):
        request = EngineRequest([8] * 50, Sampling(max_tokens))
        beside = sum(max(1, min(rest, max_tokens, TYPICAL_COMPLETION_TOKENS)) for _, rest in left.values())
        expected = sum(prompt for prompt, _ in left.values()) + 50 * (1 + len(left)) + 2 * beside
        assert replica.cost(request, PrefixMatch((), {})) == expected
