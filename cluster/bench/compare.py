"""Measures all loads on all servers in alternating rounds, so that a slow spell of the machine affects each alike."""

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import aiohttp

from cluster.bench import client
from cluster.bench.load import Load, RunLength
from cluster.bench.results import RunStats
from cluster.bench.run import OnDone, Run
from cluster.bench.target import Target, calibrated, first_model
from cluster.bench.workload import Workload, WorkloadSampler

FIGURES: dict[str, Callable[[RunStats], float]] = {
    "tokens/s": lambda stats: stats.tokens_per_s,
    "requests/s": lambda stats: stats.requests_per_s,
    "TTFT p50": lambda stats: stats.ttft.at(0.5),
    "TTFT p95": lambda stats: stats.ttft.at(0.95),
    "TTFT p99": lambda stats: stats.ttft.at(0.99),
    "TPOT p50": lambda stats: stats.tpot.at(0.5),
    "TPOT p95": lambda stats: stats.tpot.at(0.95),
    "TPOT p99": lambda stats: stats.tpot.at(0.99),
    "E2E p50": lambda stats: stats.e2e.at(0.5),
    "E2E p95": lambda stats: stats.e2e.at(0.95),
    "E2E p99": lambda stats: stats.e2e.at(0.99),
}
"""What is reported of each load: rates, and latencies in seconds."""


@dataclass(frozen=True, slots=True)
class Server:
    """A server to measure. url: its base URL, ending in /v1. model: empty for the first one that it lists."""

    url: str
    key: str = ""
    model: str = ""


@dataclass(frozen=True, slots=True)
class Plan:
    """What to measure, and how. rounds: how often each load is measured. extra: further fields of every request."""

    servers: tuple[Server, ...]
    loads: tuple[Load, ...]
    workload: Workload
    length: RunLength
    rounds: int = 1
    seed: int = 0
    stream: bool = True
    timeout_s: float = 600.0
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class ComparisonResults:
    """What was measured. rounds: by load and index of the server, the statistics of each round that began."""

    urls: list[str]
    models: list[str]
    rounds: dict[tuple[Load, int], list[RunStats]] = field(default_factory=dict)

    def add(self, server: int, stats: RunStats) -> None:
        self.rounds.setdefault((stats.load, server), []).append(stats)

    def drop_empty(self) -> None:
        """Removes rounds that were interrupted before they measured anything."""
        measured = {key: [stats for stats in rounds if stats.seconds > 0] for key, rounds in self.rounds.items()}
        self.rounds = {key: rounds for key, rounds in measured.items() if rounds}

    @property
    def loads(self) -> list[Load]:
        return list(dict.fromkeys(load for load, _ in self.rounds))

    def of(self, load: Load, server: int) -> list[RunStats]:
        return self.rounds.get((load, server), [])

    def figure(self, load: Load, server: int, name: str) -> float:
        """The median of the rounds."""
        return median(FIGURES[name](stats) for stats in self.of(load, server))

    def ratio(self, load: Load, server: int, name: str) -> float | None:
        """The figure relative to the first server's: the median of the rounds' ratios. None where that one has none."""
        pairs = zip(self.of(load, server), self.of(load, 0), strict=False)
        ratios = [FIGURES[name](stats) / base for stats, first in pairs if (base := FIGURES[name](first))]
        return median(ratios) if ratios else None


OnRun = Callable[[int, int, Run], OnDone]
"""Called before each run with the server's index, the round and the run; returns what is called for each request."""


async def measure(plan: Plan, results: ComparisonResults, on_run: OnRun) -> None:
    """Measures the whole plan into `results`, which is valid when this is cancelled, too. Raises TargetError."""
    # The seed fixes lengths and arrivals only. The words are new, so that no cache knows them from an earlier run.
    run_id = secrets.token_hex(4)
    sessions = [client.session(server.key, 0, plan.timeout_s) for server in plan.servers]
    try:
        targets = [await _target(http, server, plan) for http, server in zip(sessions, plan.servers, strict=True)]
        results.models[:] = [target.model for target in targets]
        scales = [await calibrated(http, target, run_id) for http, target in zip(sessions, targets, strict=True)]
        for load in plan.loads:
            for number in range(plan.rounds):
                # Each server goes first as often as last.
                order: Sequence[int] = range(len(targets)) if number % 2 == 0 else range(len(targets))[::-1]
                for server in order:
                    seed = plan.seed + 1000 * number
                    sampler = WorkloadSampler(plan.workload, seed, f"{run_id}/{server}/{load}", scales[server])
                    run = Run(targets[server], load, plan.length, sampler, seed)
                    run.on_done = on_run(server, number, run)
                    results.add(server, run.stats)
                    await run.go(sessions[server])
    finally:
        for http in sessions:
            await http.close()


async def _target(http: aiohttp.ClientSession, server: Server, plan: Plan) -> Target:
    model = server.model or await first_model(http, server.url)
    return Target(server.url, server.key, model, plan.stream, plan.extra)
