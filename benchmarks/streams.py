"""One load on one server, by the load generator: the client side of the measurements."""

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
    """So many streams at a time, each a few times in a row. prompt, tokens: lengths in tokens."""
    workload = Workload(Lengths(prompt, prompt), Lengths(tokens, tokens))
    return measured(url, Load("concurrency", at_a_time), RunLength(0, at_a_time * each, 0), workload)


def _unseen(asked: Conversation, outcome: Outcome) -> None:
    """For those who look at the figures alone."""


def measured(
    url: str, load: Load, span: RunLength, workload: Workload, *, on_done: OnDone = _unseen, **how: Any
) -> RunStats:
    """Runs it; gives what was seen. url: the base URL, ending in /v1. how: further fields of cluster.bench's Plan.

    Raises RuntimeError where a request failed: nothing that is compared may.
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
