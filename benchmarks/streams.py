"""Runs one load on one server with the load generator, for other benchmarks."""

import asyncio
from typing import Any

from cluster.bench.client import Outcome
from cluster.bench.compare import ComparisonResults, Plan, Server, measure
from cluster.bench.lengths import Lengths
from cluster.bench.load import Load, RunLength
from cluster.bench.results import RunStats
from cluster.bench.run import OnDone, Run
from cluster.bench.workload import Conversation, Workload


def streams(url: str, at_a_time: int, *, each: int, prompt: int, tokens: int) -> RunStats:
    """Concurrent streams, each of them `each` times in a row. prompt, tokens: lengths in tokens."""
    workload = Workload(Lengths(prompt, prompt), Lengths(tokens, tokens))
    return measured(url, Load("concurrency", at_a_time), RunLength(0, at_a_time * each, 0), workload)


def _unseen(asked: Conversation, outcome: Outcome) -> None:
    """Ignores single requests."""


def measured(
    url: str, load: Load, span: RunLength, workload: Workload, *, on_done: OnDone = _unseen, **how: Any
) -> RunStats:
    """Runs a load and returns its statistics. url: the base URL, ending in /v1. how: further fields of the Plan.

    Raises RuntimeError if a request failed, because the figures would not be comparable.
    """
    plan = Plan((Server(url),), (load,), workload, span, **{"extra": {"ignore_eos": True}, **how})
    seen = ComparisonResults([url], [])

    def on_run(place: int, number: int, run: Run) -> OnDone:
        return on_done

    asyncio.run(measure(plan, seen, on_run))
    ((one,),) = seen.rounds.values()
    if one.errors:
        raise RuntimeError(f"{url}: {dict(one.errors)}")
    return one
