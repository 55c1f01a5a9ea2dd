"""A router's records of replicas and attempts: each ends with its replica or attempt."""

from collections import Counter
from contextlib import ExitStack

from deployments.common.messages import EngineRequest, ReplicaStats, Sampling
from deployments.common.prefix import block_keys
from deployments.routing.prefix_holders import pack
from deployments.routing.registry import EngineReplicas, registry
from tests.deployments.routing.clock import Clock

IDLE = ReplicaStats(300, 60_000)
BOTH = {"r0": IDLE, "r1": IDLE}


def fleet(clock: Clock | None = None) -> EngineReplicas:
    replicas = EngineReplicas("this", clock or Clock())
    replicas.update(BOTH)
    return replicas


def request_of(attempt_id: int, *prompt: int) -> EngineRequest:
    return EngineRequest(list(prompt) or [attempt_id] * 100, Sampling(max_tokens=9), attempt_id=attempt_id)


def ask(replicas: EngineReplicas, attempt_id: int) -> str:
    """Routes an attempt to the replica chosen first, which accepts it."""
    [first, *_] = replicas.choose(request_of(attempt_id), BOTH)
    replicas.accepted(request_of(attempt_id), first)
    return first


def costs(replicas: EngineReplicas) -> dict[str, int]:
    """What a request would cost on each replica."""
    request = EngineRequest([8] * 100, Sampling(max_tokens=100))
    prefix = replicas.states.prefixes.match(pack(block_keys(request.prompt_ids)))
    return {name: state.cost(request, prefix) for name, state in replicas.states.items()}


def test_simultaneous_requests_are_spread_over_replicas() -> None:
    replicas, chosen = fleet(), Counter[str]()
    with ExitStack() as stack:
        for _ in range(10):
            [first, *_] = replicas.choose(request_of(stack.enter_context(replicas.attempt())), BOTH)
            chosen[first] += 1
    assert chosen == {"r0": 5, "r1": 5}


def test_a_request_counts_only_on_the_replica_that_accepts_it() -> None:
    replicas = fleet()
    idle = costs(replicas)["r0"]
    with replicas.attempt() as attempt_id:
        first, second = replicas.choose(request_of(attempt_id), BOTH)
        assert costs(replicas)[first] > idle
        replicas.accepted(request_of(attempt_id), second)
        assert costs(replicas)[first] == idle < costs(replicas)[second]
        in_prefill = costs(replicas)[second]
        replicas.record_tokens(attempt_id, 1)
        assert idle < costs(replicas)[second] <= in_prefill - 100, "its prompt has been computed"


def test_a_choice_that_no_replica_accepts_is_forgotten() -> None:
    clock = Clock()
    replicas = fleet(clock)
    idle = costs(replicas)
    with replicas.attempt() as first, replicas.attempt() as second, replicas.attempt() as third:
        for attempt_id in (first, second, third):
            replicas.choose(request_of(attempt_id), BOTH)
            clock.now += 2.1
        replicas.accepted(request_of(third), "r0")
        with replicas.attempt() as later:
            replicas.choose(request_of(later), BOTH)
            replicas.accepted(request_of(first), "r1")
            assert replicas.entries == 2 + 4 + 1 + 3, "all run, the last is pending, the second has no replica"
        assert costs(replicas)["r1"] > idle["r1"], "accepted late, it counts again"
    for state in replicas.states.values():
        state.probe_acked()
    assert costs(replicas) == idle and replicas.entries == 2


def test_no_record_remains_of_attempts_that_end_before_serve_routes_them() -> None:
    replicas = fleet()
    for _ in range(100):
        with replicas.attempt() as attempt_id:
            ask(replicas, attempt_id)
        with replicas.attempt() as attempt_id:
            replicas.choose(request_of(attempt_id), BOTH)
        # Serve was still routing the attempt when it was cancelled.
        replicas.choose(request_of(attempt_id), BOTH)
        replicas.accepted(request_of(attempt_id), "r0")
        replicas.record_tokens(attempt_id, 1)
    assert replicas.entries == 2


def test_a_replica_that_leaves_takes_its_requests_out_of_the_records() -> None:
    replicas = fleet()
    for generation in range(50):
        names = [f"g{generation}a", f"g{generation}b"]
        with ExitStack() as stack:
            replicas.update(dict.fromkeys(names, IDLE))
            for number in range(20):
                request = request_of(stack.enter_context(replicas.attempt()))
                [first, *_] = replicas.choose(request, names)
                if number % 2:
                    replicas.accepted(request, first)
            assert replicas.entries == 2 + 20 + 10 + 20
            replicas.update(BOTH)
            assert replicas.entries == 2 + 20, "the attempts still run, and count nowhere"
            replicas.accepted(request, first)
            assert replicas.entries == 2 + 20, "accepted by a replica that has left"
    assert replicas.entries == 2


def test_a_replica_that_comes_back_starts_empty() -> None:
    replicas = fleet()
    idle = costs(replicas)
    with replicas.attempt() as attempt_id:
        name = ask(replicas, attempt_id)
        replicas.update({})
        replicas.update(BOTH)
        assert costs(replicas) == idle and replicas.entries == 2 + 1
        replicas.record_tokens(attempt_id, 5)
        with replicas.attempt() as later:
            assert ask(replicas, later) in BOTH
        assert costs(replicas) == idle
        replicas.accepted(request_of(attempt_id), name)
        assert costs(replicas)[name] > idle[name], "a resumed request may return to it"
    assert costs(replicas) == idle and replicas.entries == 2


def test_only_known_candidates_are_chosen() -> None:
    replicas = fleet()
    with replicas.attempt() as attempt_id:
        assert replicas.choose(request_of(attempt_id), ["r1", "stranger"]) == ["r1"]
        assert replicas.choose(request_of(attempt_id), ["stranger"]) == []


def test_subscribers_get_every_change_of_the_count() -> None:
    counts: list[int] = []
    replicas = EngineReplicas("this")
    replicas.subscribe(counts.append)
    for stats in ({"r0": IDLE}, {"r0": ReplicaStats(100)}, BOTH, {"r1": IDLE}, {"r2": IDLE}, {}):
        replicas.update(stats)
    assert counts == [1, 2, 1, 0] and replicas.count == 0


def test_one_registry_serves_the_process() -> None:
    replicas = registry().replicas_of("an application")
    assert registry().replicas_of("an application") is replicas
    assert registry().replicas_of("another") is not replicas
    assert replicas.router_id == registry().router_id
