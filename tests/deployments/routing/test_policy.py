"""Replicas are chosen by what they hold, what waits there and how fast they are."""

import time
from collections import Counter

import msgspec
import pytest

from deployments.common.messages import EngineRequest, PendingWork, ReplicaStats, Sampling
from deployments.common.prefix import BLOCK_TOKENS, block_keys
from deployments.routing import policy
from deployments.routing.policy import ROUTER_ID, PendingAssignments, ReplicaState, rank_replicas, record_tokens

SYSTEM = list(range(20 * BLOCK_TOKENS))


def replicas(*standings: ReplicaStats) -> dict[str, ReplicaState]:
    made = {f"r{number}": ReplicaState() for number in range(len(standings))}
    for one, standing in zip(made.values(), standings, strict=True):
        one.update(standing)
    return made


def sent(replica: ReplicaState, number: str, prompt: list[int], tokens: int = 0) -> None:
    replica.assign(number, EngineRequest(prompt, Sampling(max_tokens=tokens)))


def asked(*tail: int, avoid: tuple[str, ...] = ()) -> EngineRequest:
    return EngineRequest([*SYSTEM, *tail, 7], Sampling(max_tokens=100), avoid_replicas=avoid)


def cost(replica: ReplicaState) -> int:
    """Of a request of which nothing is cached."""
    request = EngineRequest([8] * len(asked().prompt_ids), Sampling(max_tokens=100))
    return replica.cost(request, block_keys(request.prompt_ids))


def test_a_prompt_goes_back_to_where_its_beginning_is() -> None:
    known = replicas(*[ReplicaStats(300, 60_000)] * 8)
    sent(known["r5"], "1", SYSTEM)
    known["r5"].finish("1")
    assert {rank_replicas(asked(number), known)[0] for number in range(50)} == {"r5"}


def test_a_prompt_goes_elsewhere_when_too_much_waits_there() -> None:
    known = replicas(ReplicaStats(300, 60_000), ReplicaStats(300, 60_000))
    sent(known["r0"], "0", SYSTEM)
    known["r0"].finish("0")
    sent(known["r0"], "1", list(range(9000, 9000 + len(SYSTEM) // 2)))
    assert rank_replicas(asked(1), known)[0] == "r0"
    sent(known["r0"], "2", list(range(7000, 7000 + len(SYSTEM))))
    assert rank_replicas(asked(1), known)[0] == "r1"
    known["r0"].finish("2")
    assert rank_replicas(asked(1), known)[0] == "r0"


def test_other_routers_work_counts_and_ones_own_counts_once() -> None:
    busy = ReplicaStats(300, 60_000, {"another": PendingWork(4000, 1000, 5)})
    assert rank_replicas(asked(), replicas(busy, ReplicaStats(300, 60_000)))[0] == "r1"
    known = replicas(
        ReplicaStats(300, 60_000, {ROUTER_ID: PendingWork(4000, 1000, 5)}),
        ReplicaStats(300, 60_000, {"another": PendingWork(9)}),
    )
    assert cost(known["r0"]) == len(asked().prompt_ids) < cost(known["r1"])


def test_what_other_routers_wait_for_is_computed_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    busy = ReplicaStats(300, 60_000, {"another": PendingWork(4000, 0, 0)})
    [one] = replicas(busy).values()
    now = time.monotonic()
    assert cost(one) == pytest.approx(len(asked().prompt_ids) + 4000, abs=100)
    monkeypatch.setattr(time, "monotonic", lambda: now + 10)
    one.update(busy)
    assert cost(one) == pytest.approx(len(asked().prompt_ids) + 1000, abs=100)
    monkeypatch.setattr(time, "monotonic", lambda: now + 20)
    assert cost(one) == len(asked().prompt_ids)


def test_a_prompt_goes_where_another_router_had_it_computed() -> None:
    known = replicas(*[ReplicaStats(300, 60_000)] * 8)
    told = msgspec.structs.replace(asked(), prefix_replica="r6", prefix_tokens=len(SYSTEM))
    assert rank_replicas(told, known)[0] == "r6"
    assert rank_replicas(asked(5), known)[0] == "r6", "and it is not forgotten"
    assert rank_replicas(msgspec.structs.replace(told, prefix_replica="gone"), known)[0] == "r6"


def test_what_has_been_computed_is_waited_for_no_more() -> None:
    [one] = replicas(ReplicaStats(300, 60_000)).values()
    alone = cost(one)
    one.assign("1", EngineRequest([1] * 1000, Sampling(max_tokens=100), attempt_id=41))
    beside = cost(one)
    record_tokens(41, 1)
    decoding = cost(one)
    assert beside - decoding == pytest.approx(1000, abs=5)
    record_tokens(41, 80)
    ending = cost(one)
    assert alone < ending < decoding
    one.finish("1")
    record_tokens(41, 1)
    assert cost(one) == alone


def test_a_prompt_is_computed_where_the_fewest_wait_for_it() -> None:
    standings = (
        ReplicaStats(300, 60_000, {"another": PendingWork(0, 8, 8)}),
        ReplicaStats(300, 60_000, {"another": PendingWork(0, 20, 1)}),
    )
    assert rank_replicas(asked(), replicas(*standings))[0] == "r1"


def test_requests_of_one_moment_know_of_each_other() -> None:
    known, plans = replicas(ReplicaStats(300, 60_000), ReplicaStats(300, 60_000)), PendingAssignments()
    prompts = [[number] * 100 for number in range(10)]
    chosen = [
        plans.choose(str(one), EngineRequest(prompt, Sampling(max_tokens=9)), known)[0]
        for one, prompt in enumerate(prompts)
    ]
    assert Counter(chosen) == {"r0": 5, "r1": 5}


def test_a_request_that_one_refuses_counts_only_where_it_is_taken() -> None:
    known, plans = replicas(ReplicaStats(300, 60_000), ReplicaStats(300, 60_000)), PendingAssignments()
    alone, request = cost(known["r0"]), EngineRequest([7] * 100, Sampling(max_tokens=9))
    first, second = plans.choose("1", request, known)
    assert cost(known[first]) > alone
    plans.accepted("1", request, known[second])
    assert cost(known[first]) == alone < cost(known[second])


def test_a_plan_of_which_nothing_comes_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    known, plans = replicas(ReplicaStats(300, 60_000), ReplicaStats(300, 60_000)), PendingAssignments()
    alone = {name: cost(one) for name, one in known.items()}
    monkeypatch.setattr(policy, "_UNRESPONSIVE_S", -1.0)
    request = EngineRequest([7] * 100, Sampling(max_tokens=9))
    for number in range(3):
        plans.choose(str(number), request, known)
    plans.accepted("2", request, known["r0"])
    known["r0"].finish("2")
    assert {name: cost(one) for name, one in known.items()} == alone


def test_a_slow_replica_gets_less() -> None:
    known = replicas(ReplicaStats(300, 60_000), ReplicaStats(100, 60_000))
    given: Counter[str] = Counter()
    for number in range(400):
        request = EngineRequest([number] * 40, Sampling(max_tokens=100))
        [first, *_] = rank_replicas(request, known)
        given[first] += 1
        known[first].assign(str(number), request)
    assert 2.5 < given["r0"] / given["r1"] < 3.5


def test_routers_that_know_nothing_of_each_other_agree() -> None:
    here, there = replicas(*[ReplicaStats(300, 60_000)] * 9), replicas(*[ReplicaStats(300, 60_000)] * 9)
    prompts = [EngineRequest([number] * 100, Sampling(max_tokens=9)) for number in range(60)]
    owners = [rank_replicas(one, here)[0] for one in prompts]
    assert owners == [rank_replicas(one, there)[0] for one in prompts]
    assert len(set(owners)) > 6


def test_routers_agree_while_speeds_of_equal_nodes_are_measured_anew() -> None:
    here = replicas(*[ReplicaStats(speed, 60_000) for speed in (300, 330, 290, 310)])
    there = replicas(*[ReplicaStats(speed, 60_000) for speed in (320, 280, 330, 300)])
    prompts = [EngineRequest([number] * 1000, Sampling(max_tokens=9)) for number in range(60)]
    owners = [rank_replicas(one, here)[0] for one in prompts]
    assert owners == [rank_replicas(one, there)[0] for one in prompts]
    assert len(set(owners)) == 4


def test_a_replica_that_failed_is_taken_last() -> None:
    known = replicas(ReplicaStats(300, 60_000), ReplicaStats(300, 60_000))
    sent(known["r0"], "1", SYSTEM)
    assert rank_replicas(asked(avoid=("r0",)), known) == ["r1"]
    assert set(rank_replicas(asked(avoid=("r0", "r1")), known)) == {"r0", "r1"}


def test_a_replica_forgets_what_its_cache_has_no_room_for() -> None:
    known = replicas(ReplicaStats(300, 10 * BLOCK_TOKENS), ReplicaStats(300, 60_000))
    sent(known["r0"], "1", SYSTEM)
    assert known["r0"].cached_tokens(block_keys(SYSTEM)) == 0
