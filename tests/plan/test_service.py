"""The simulated service, against results computed by hand, step by step."""

import random
from collections import deque
from collections.abc import Sequence

import pytest

from cluster.plan.load import TraceRequest
from cluster.plan.profile import fit
from cluster.plan.service import Measurements, Scaling, Service, ServiceModel, simulate
from tests.plan.profiles import ENGINE, profile

TIMES = fit(profile().points)
BARE = ServiceModel(policy="least-waiting", overhead_s=0.0)


def run(
    requests: Sequence[TraceRequest], replicas: int = 1, terms: ServiceModel = BARE, scaling: Scaling | None = None
) -> Measurements:
    return run_service(requests, replicas, terms, scaling)[0]


def run_service(
    requests: Sequence[TraceRequest], replicas: int, terms: ServiceModel, scaling: Scaling | None = None
) -> tuple[Measurements, Service]:
    window = Measurements()
    return window, simulate(requests, ENGINE, TIMES, replicas, terms, lambda at: window, scaling)


def random_requests(count: int, gap_s: float, seed: int = 0, output: int = 60) -> list[TraceRequest]:
    chance, at, requests = random.Random(seed), 0.0, []
    for number in range(count):
        at += chance.expovariate(1 / gap_s)
        requests.append(TraceRequest(at, chance.randint(20, 700), chance.randint(1, output), number))
    return requests


def one_step_at_a_time(requests: Sequence[TraceRequest]) -> tuple[list[float], list[float]]:
    """The same engine, written as simply as possible. Returns the times to the first token, and per output token."""
    arriving, now = deque(requests), 0.0
    prompts: list[list[float]] = []  # [at, prompt, computed, output]
    streams: list[list[float]] = []  # [at, context, left, output, first]
    ttft, tpot = [], []
    while arriving or prompts or streams:
        if not prompts and not streams:
            now = max(now, arriving[0].at)
        while arriving and arriving[0].at <= now:
            request = arriving.popleft()
            prompts.append([request.at, request.prompt, 0, request.output])
        left, behind, sizes = ENGINE.max_num_batched_tokens - len(streams), 0, []
        context = int(sum(stream[1] for stream in streams))
        while (
            streams
            and left > 32
            and TIMES.step(len(streams), context, left) > ENGINE.decode_slowdown * TIMES.step(len(streams), context)
        ):
            left = (left - 1) // 32 * 32
        for _, prompt, computed, _ in prompts:
            size = int(min(left, prompt - computed))
            sizes.append(size)
            behind += int(size * computed + size * (size - 1) // 2)
            left -= size
        assert len(streams) + len(prompts) <= ENGINE.max_num_seqs, "the router would have queued some requests"
        now += TIMES.step(len(streams), int(sum(stream[1] for stream in streams)), sum(sizes), behind)
        for stream in streams:
            stream[1] += 1
            stream[2] -= 1
        for prompt_, size in zip(prompts, sizes, strict=True):
            prompt_[2] += size
        for at, prompt, computed, output in prompts:
            if computed == prompt:
                ttft.append(now - at)
                streams.append([at, prompt + 1, output - 1, output, now])
        prompts = [prompt_ for prompt_ in prompts if prompt_[2] < prompt_[1]]
        tpot += [(now - stream[4]) / (stream[3] - 1) for stream in streams if stream[2] <= 0 and stream[3] > 1]
        streams = [stream for stream in streams if stream[2] > 0]
    return ttft, tpot


@pytest.mark.parametrize("gap_s", [1.0, 1.5, 4.0])
def test_the_simulated_engine_matches_a_step_by_step_calculation(gap_s: float) -> None:
    requests = random_requests(80, gap_s, output=30)
    ttft, tpot = one_step_at_a_time(requests)
    measured = run(requests, terms=ServiceModel(policy="least-waiting", overhead_s=0.0, ttl_s=0))
    assert measured.requests == 80 and measured.ttft.count == len(ttft) and measured.tpot.count == len(tpot)
    for share in (0.1, 0.5, 0.9, 0.99):
        rank = max(1, -int(-share * len(ttft) // 1)) - 1
        assert measured.ttft.at(share) == pytest.approx(sorted(ttft)[rank], rel=0.01)
        rank = max(1, -int(-share * len(tpot) // 1)) - 1
        assert measured.tpot.at(share) == pytest.approx(sorted(tpot)[rank], rel=0.01)


def test_a_cached_answer_is_a_hit_and_one_in_progress_is_joined() -> None:
    first = TraceRequest(0, 100, 50, question="q")
    length = TIMES.step(0, 0, 100, 4950) + TIMES.decode(1, 101, 49)
    joins = TraceRequest(length / 2, 100, 50, question="q")
    hits, late = TraceRequest(length + 1, 100, 50, question="q"), TraceRequest(length + 200, 100, 50, question="q")
    measured = run([first, joins, hits, late], terms=ServiceModel(policy="least-waiting", overhead_s=0.0, ttl_s=100))
    assert (measured.requests, measured.joined, measured.hits) == (4, 1, 1)
    assert measured.tokens == 100  # generated twice: the last request arrived when the answer had expired
    without = run([first, joins, hits], terms=ServiceModel(policy="least-waiting", ttl_s=0))
    assert (without.joined, without.hits, without.tokens) == (0, 0, 150)


def test_requests_beyond_the_slots_wait_and_beyond_the_queue_are_refused() -> None:
    flood = [TraceRequest(0.0, 10, 20, number) for number in range(ENGINE.max_num_seqs + 10)]
    measured = run(flood, terms=ServiceModel(policy="least-waiting", max_queued=4))
    assert measured.refused == 6 and measured.ttft.count == ENGINE.max_num_seqs + 4
    # The waiting requests start when the running requests end.
    assert measured.ttft.at(0.99) > TIMES.decode(ENGINE.max_num_seqs, 320, 19) > measured.ttft.at(0.5)


def test_the_kv_cache_limits_the_running_requests() -> None:
    wide = [TraceRequest(0.0, 9_000, 50, number) for number in range(8)]
    measured = run(wide)
    # Four of 9,000 tokens fit into 36,000: the fifth waits for the first to end.
    prefill_s = TIMES.step(0, 0, 512, 0) * 9000 / 512
    assert measured.ttft.count == 8 and measured.ttft.at(1.0) > 8 * prefill_s * 0.9


@pytest.mark.parametrize("policy", ["dray", "least-waiting"])
def test_a_conversation_returns_to_the_replica_that_has_cached_it(policy: str) -> None:
    def requests_of(session: int | str) -> list[TraceRequest]:
        turns = [TraceRequest(40.0 * turn, 200 + 300 * turn, 20, session=session) for turn in range(4)]
        others = [TraceRequest(40.0 * turn + 10, 210, 20, session=f"other {turn}") for turn in range(4)]
        return sorted([*turns, *others], key=lambda request: request.at)

    terms = ServiceModel(policy=policy, overhead_s=0.0)
    together, apart = run(requests_of("s"), 2, terms), run(requests_of(""), 2, terms)
    # 300 new tokens of up to 1,100.
    assert together.ttft.at(1.0) < 0.5 * apart.ttft.at(1.0)


@pytest.mark.parametrize("policy", ["dray", "least-waiting"])
def test_more_replicas_share_the_load(policy: str) -> None:
    requests = random_requests(300, 0.5)
    single, four = (run(requests, count, ServiceModel(policy=policy)) for count in (1, 4))
    # Prompts slow streams down only so far, however many there are, so a token's time gains less.
    assert four.tpot.at(0.95) < 0.9 * single.tpot.at(0.95) and four.ttft.at(0.95) < 0.6 * single.ttft.at(0.95)
    assert four.tokens == single.tokens == sum(request.output for request in requests)


def test_replicas_follow_the_load() -> None:
    busy = [TraceRequest(100 + number * 0.2, 300, 100, number) for number in range(600)]
    late = [TraceRequest(1500.0, 10, 2, "late")]
    windows: dict[int, Measurements] = {}
    scaling = Scaling(min_replicas=1, target_wait_s=10, downscale_delay_s=120, start_s=15)
    simulate(
        [TraceRequest(0, 10, 2, "early"), *busy, *late],
        *(ENGINE, TIMES, 8, BARE),
        lambda at: windows.setdefault(int(at // 50), Measurements()),
        scaling,
    )
    ups = [(index * 50, window.up) for index, window in sorted(windows.items())]
    assert ups[0][1] == 1
    assert max(up for _, up in ups) >= 4
    assert next(up for at, up in ups if at > 800) == 1
