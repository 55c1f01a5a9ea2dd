"""Runs one load on one server for a while."""

import asyncio
import itertools
import random
import time
from collections.abc import Callable

import aiohttp

from cluster.bench.client import Outcome, ask
from cluster.bench.load import Load, RunLength
from cluster.bench.results import RunStats
from cluster.bench.target import Target
from cluster.bench.workload import Conversation, WorkloadSampler

_MAX_IN_FLIGHT = 4096
"""Concurrent requests of a `rate` load; further ones are counted as not sent."""
_NOT_SENT = f"not sent: {_MAX_IN_FLIGHT} requests in flight already"


OnDone = Callable[[Conversation, Outcome], None]


class Run:
    """A running load. `stats` is valid at any time, also after an interruption."""

    def __init__(self, target: Target, load: Load, length: RunLength, sampler: WorkloadSampler, seed: int) -> None:
        """sampler: draws the requests. seed: of their arrivals.

        Set `on_done` to be called for each finished request, those of the warm-up included.
        """
        self._target, self._load, self._length, self._sampler = target, load, length, sampler
        self._rng = random.Random(f"{seed}/arrivals")
        self.on_done: OnDone | None = None
        now = time.perf_counter()
        self._deadline = now + length.warmup_s + length.limit_s
        self.stats = RunStats(load, now + length.warmup_s)
        self.in_flight = 0
        self._counted = 0

    async def go(self, http: aiohttp.ClientSession) -> RunStats:
        """Runs to the end. When it is cancelled, `stats` holds what was measured until then."""
        stats = self.stats
        if self._length.requests == 0:
            stats.until = self._deadline
        try:
            await (self._run_concurrency(http) if self._load.kind == "concurrency" else self._run_rate(http))
        except asyncio.CancelledError:
            stats.complete = False
            stats.until = min(stats.until, time.perf_counter())
            raise
        stats.until = min(stats.until, time.perf_counter())
        return stats

    def _may_start(self) -> bool:
        """Whether another request may start now; if so, counts it."""
        now = time.perf_counter()
        if now >= self._deadline or self._counted >= self._length.max_requests:
            return False
        self._counted += now >= self.stats.began
        return True

    async def _run_concurrency(self, http: aiohttp.ClientSession) -> None:
        async def worker() -> None:
            while self._may_start():
                await self._send(http, self._sampler.next())

        async with asyncio.TaskGroup() as group:
            for _ in range(int(self._load.value)):
                group.create_task(worker())

    async def _run_rate(self, http: aiohttp.ClientSession) -> None:
        due = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for _ in itertools.count():
                due += self._rng.expovariate(self._load.value)
                await asyncio.sleep(max(0.0, due - time.perf_counter()))
                if not self._may_start():
                    return
                self.stats.late.add(time.perf_counter() - due)
                conversation = self._sampler.next()
                if self.in_flight >= _MAX_IN_FLIGHT:
                    self.stats.errors[_NOT_SENT] += 1
                    continue
                group.create_task(self._send(http, conversation))

    async def _send(self, http: aiohttp.ClientSession, conversation: Conversation) -> None:
        self.in_flight += 1
        try:
            body = self._target.body(conversation.messages, conversation.output)
            outcome = await ask(http, self._target.url, body, text=self._sampler.needs_answers)
        finally:
            self.in_flight -= 1
        self.stats.add(outcome)
        if self.on_done is not None:
            self.on_done(conversation, outcome)
        self._sampler.answered(conversation, outcome.text)
