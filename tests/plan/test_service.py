"""The model of the service, against what can be reckoned by hand, step by step."""

import random
from collections import deque
from collections.abc import Sequence

import pytest

from cluster.plan.load import TraceRequest
from cluster.plan.profile import fit
from cluster.plan.service import Scaling, Service, ServiceModel, Window, simulate
from tests.plan.profiles import ENGINE, profile

TIMES = fit(profile().points)
BARE = ServiceModel(policy="least-waiting", overhead_s=0.0)


def run(
    requests: Sequence[TraceRequest], replicas: int = 1, terms: ServiceModel = BARE, scaling: Scaling | None = None
) -> Window:
    return ran(requests, replicas, terms, scaling)[0]


def ran(
    requests: Sequence[TraceRequest], replicas: int, terms: ServiceModel, scaling: Scaling | None = None
) -> tuple[Window, Service]:
    window = Window()
    return window, simulate(requests, ENGINE, TIMES, replicas, terms, lambda at: window, scaling)


def some(count: int, gap_s: float, seed: int = 0, output: int = 60) -> list[TraceRequest]:
    chance, at, made = random.Random(seed), 0.0, []
    for number in range(count):
        at += chance.expovariate(1 / gap_s)
        made.append(TraceRequest(at, chance.randint(20, 700), chance.randint(1, output), number))
    return made


def one_step_at_a_time(requests: Sequence[TraceRequest]) -> tuple[list[float], list[float]]:
    """The same engine, written as plainly as can be: times to the first token and per token."""
    coming, now = deque(requests), 0.0
    prompts: list[list[float]] = []  # [at, prompt, computed, output]
    streams: list[list[float]] = []  # [at, context, left, output, first]
    ttft, tpot = [], []
    while coming or prompts or streams:
        if not prompts and not streams:
            now = max(now, coming[0].at)
        while coming and coming[0].at <= now:
            one = coming.popleft()
            prompts.append([one.at, one.prompt, 0, one.output])
        left, behind, sizes = ENGINE.max_num_batched_tokens - len(streams), 0, []
        for _, prompt, computed, _ in prompts:
            size = int(min(left, prompt - computed))
            sizes.append(size)
            behind += int(size * computed + size * (size - 1) // 2)
            left -= size
        assert len(streams) + len(prompts) <= ENGINE.max_num_seqs, "the router would have held some back"
        now += TIMES.step(len(streams), int(sum(one[1] for one in streams)), sum(sizes), behind)
        for stream in streams:
            stream[1] += 1
            stream[2] -= 1
        for prompt_, size in zip(prompts, sizes, strict=True):
            prompt_[2] += size
        for at, prompt, computed, output in prompts:
            if computed == prompt:
                ttft.append(now - at)
                streams.append([at, prompt + 1, output - 1, output, now])
        prompts = [one for one in prompts if one[2] < one[1]]
        tpot += [(now - one[4]) / (one[3] - 1) for one in streams if one[2] <= 0 and one[3] > 1]
        streams = [one for one in streams if one[2] > 0]
    return ttft, tpot


@pytest.mark.parametrize("gap_s", [1.0, 1.5, 4.0])
def test_an_engine_steps_as_one_that_is_stepped_plainly(gap_s: float) -> None:
    requests = some(80, gap_s, output=30)
    ttft, tpot = one_step_at_a_time(requests)
    seen = run(requests, terms=ServiceModel(policy="least-waiting", overhead_s=0.0, ttl_s=0))
    assert seen.requests == 80 and seen.ttft.count == len(ttft) and seen.tpot.count == len(tpot)
    for share in (0.1, 0.5, 0.9, 0.99):
        rank = max(1, -int(-share * len(ttft) // 1)) - 1
        assert seen.ttft.at(share) == pytest.approx(sorted(ttft)[rank], rel=0.01)
        rank = max(1, -int(-share * len(tpot) // 1)) - 1
        assert seen.tpot.at(share) == pytest.approx(sorted(tpot)[rank], rel=0.01)


def test_a_stored_answer_is_a_hit_and_one_being_made_is_joined() -> None:
    first = TraceRequest(0, 100, 50, question="q")
    length = TIMES.step(0, 0, 100, 4950) + TIMES.decode(1, 101, 49)
    joins = TraceRequest(length / 2, 100, 50, question="q")
    hits, late = TraceRequest(length + 1, 100, 50, question="q"), TraceRequest(length + 200, 100, 50, question="q")
    seen = run([first, joins, hits, late], terms=ServiceModel(policy="least-waiting", overhead_s=0.0, ttl_s=100))
    assert (seen.requests, seen.joined, seen.hits) == (4, 1, 1)
    assert seen.tokens == 100  # twice made: the last came when the answer was forgotten
    without = run([first, joins, hits], terms=ServiceModel(policy="least-waiting", ttl_s=0))
    assert (without.joined, without.hits, without.tokens) == (0, 0, 150)


def test_beyond_the_places_they_wait_and_beyond_the_queue_they_are_refused() -> None:
    flood = [TraceRequest(0.0, 10, 20, number) for number in range(ENGINE.max_num_seqs + 10)]
    seen = run(flood, terms=ServiceModel(policy="least-waiting", waiting=4))
    assert seen.refused == 6 and seen.ttft.count == ENGINE.max_num_seqs + 4
    # Those that wait begin when the first ones end.
    assert seen.ttft.at(0.99) > TIMES.decode(ENGINE.max_num_seqs, 320, 19) > seen.ttft.at(0.5)


def test_the_kv_cache_bounds_how_many_are_under_way() -> None:
    wide = [TraceRequest(0.0, 9_000, 50, number) for number in range(8)]
    seen = run(wide)
    # Four of 9,000 tokens fit into 36,000: the fifth waits for the first to end.
    alone = TIMES.step(0, 0, 512, 0) * 9000 / 512
    assert seen.ttft.count == 8 and seen.ttft.at(1.0) > 8 * alone * 0.9


@pytest.mark.parametrize("policy", ["dray", "least-waiting"])
def test_a_conversation_goes_back_to_where_its_beginning_is(policy: str) -> None:
    def asked(session: int | str) -> list[TraceRequest]:
        turns = [TraceRequest(40.0 * turn, 200 + 300 * turn, 20, session=session) for turn in range(4)]
        others = [TraceRequest(40.0 * turn + 10, 210, 20, session=f"other {turn}") for turn in range(4)]
        return sorted([*turns, *others], key=lambda one: one.at)

    terms = ServiceModel(policy=policy, overhead_s=0.0)
    together, apart = run(asked("s"), 2, terms), run([*asked("")], 2, terms)
    # 300 new tokens of up to 1,100.
    assert together.ttft.at(1.0) < 0.5 * apart.ttft.at(1.0)


@pytest.mark.parametrize("policy", ["dray", "least-waiting"])
def test_more_replicas_share_the_load(policy: str) -> None:
    requests = some(300, 0.5)
    one, four = (run(requests, count, ServiceModel(policy=policy)) for count in (1, 4))
    assert four.tpot.at(0.95) < 0.7 * one.tpot.at(0.95) and four.ttft.at(0.95) < 0.6 * one.ttft.at(0.95)
    assert four.tokens == one.tokens == sum(request.output for request in requests)


def test_replicas_come_with_the_load_and_go_after_it() -> None:
    busy = [TraceRequest(100 + number * 0.2, 300, 100, number) for number in range(600)]
    late = [TraceRequest(1500.0, 10, 2, "late")]
    ups: list[tuple[float, float]] = []
    windows: dict[int, Window] = {}
    scaling = Scaling(min_replicas=1, target_wait_s=10, downscale_delay_s=120, start_s=15)
    simulate(
        [TraceRequest(0, 10, 2, "early"), *busy, *late],
        *(ENGINE, TIMES, 8, BARE),
        lambda at: windows.setdefault(int(at // 50), Window()),
        scaling,
    )
    ups = [(place * 50, window.up) for place, window in sorted(windows.items())]
    assert ups[0][1] == 1
    assert max(up for _, up in ups) >= 4
    assert next(up for at, up in ups if at > 800) == 1
