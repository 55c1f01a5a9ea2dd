"""All loads on all servers, in alternating rounds, so that what slows the machine for a while slows each alike."""

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
    "tokens/s": lambda one: one.tokens_per_s,
    "requests/s": lambda one: one.requests_per_s,
    "TTFT p50": lambda one: one.ttft.at(0.5),
    "TTFT p95": lambda one: one.ttft.at(0.95),
    "TTFT p99": lambda one: one.ttft.at(0.99),
    "TPOT p50": lambda one: one.tpot.at(0.5),
    "TPOT p95": lambda one: one.tpot.at(0.95),
    "TPOT p99": lambda one: one.tpot.at(0.99),
    "whole p50": lambda one: one.e2e.at(0.5),
    "whole p95": lambda one: one.e2e.at(0.95),
    "whole p99": lambda one: one.e2e.at(0.99),
}
"""What is told of each load: a rate, or seconds."""


@dataclass(frozen=True, slots=True)
class Server:
    """A server that is to be measured. model: empty for the first that it names."""

    url: str
    key: str = ""
    model: str = ""


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be measured, and how."""

    servers: tuple[Server, ...]
    loads: tuple[Load, ...]
    workload: Workload
    span: RunLength
    rounds: int = 1
    seed: int = 0
    stream: bool = True
    timeout_s: float = 600.0
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class ComparisonResults:
    """What was measured, by load and server: a measurement for each round that was begun."""

    urls: list[str]
    models: list[str]
    rounds: dict[tuple[Load, int], list[RunStats]] = field(default_factory=dict)

    def add(self, server: int, measured: RunStats) -> None:
        self.rounds.setdefault((measured.load, server), []).append(measured)

    @property
    def loads(self) -> list[Load]:
        return list(dict.fromkeys(load for load, _ in self.rounds))

    def of(self, load: Load, server: int) -> list[RunStats]:
        return self.rounds.get((load, server), [])

    def figure(self, load: Load, server: int, name: str) -> float:
        """The median of the rounds."""
        return median(FIGURES[name](one) for one in self.of(load, server))

    def ratio(self, load: Load, server: int, name: str) -> float | None:
        """Over the first server's: the median of the rounds' ratios. None where the first has nothing."""
        pairs = zip(self.of(load, server), self.of(load, 0), strict=False)
        ratios = [FIGURES[name](one) / base for one, other in pairs if (base := FIGURES[name](other))]
        return median(ratios) if ratios else None


OnRun = Callable[[int, int, Run], OnDone]
"""Called with server, round and the run before it begins; gives what is to be called with each request."""


async def measure(plan: Plan, seen: ComparisonResults, on_run: OnRun) -> None:
    """Measures all of it into `seen`, which also holds what there is when this is cancelled. Raises TargetError."""
    # Words that no cache knows of an earlier run: only lengths and arrivals are the same by the seed.
    run = secrets.token_hex(4)
    sessions = [client.session(server.key, 0, plan.timeout_s) for server in plan.servers]
    try:
        targets = [await _target(http, server, plan) for http, server in zip(sessions, plan.servers, strict=True)]
        seen.models[:] = [target.model for target in targets]
        scales = [await calibrated(http, one, run) for http, one in zip(sessions, targets, strict=True)]
        for load in plan.loads:
            for number in range(plan.rounds):
                # Each goes first as often as last.
                order: Sequence[int] = range(len(targets)) if number % 2 == 0 else range(len(targets))[::-1]
                for place in order:
                    seed = plan.seed + 1000 * number
                    drawn = WorkloadSampler(plan.workload, seed, f"{run}/{place}/{load}", scales[place])
                    await _one(sessions[place], targets[place], load, plan, drawn, seen, (place, number), on_run)
    finally:
        for http in sessions:
            await http.close()


async def _target(http: aiohttp.ClientSession, server: Server, plan: Plan) -> Target:
    model = server.model or await first_model(http, server.url)
    return Target(server.url, server.key, model, plan.stream, plan.extra)


async def _one(
    http: aiohttp.ClientSession,
    target: Target,
    load: Load,
    plan: Plan,
    drawn: WorkloadSampler,
    seen: ComparisonResults,
    where: tuple[int, int],
    on_run: OnRun,
) -> None:
    place, number = where
    run = Run(target, load, plan.span, drawn, plan.seed + 1000 * number)
    run.on_done = on_run(place, number, run)
    seen.add(place, run.measured)
    await run.go(http)
