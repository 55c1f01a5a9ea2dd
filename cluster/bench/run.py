"""One load on one server: so many requests at a time, or so many a second, for a while."""

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

_MOST_OPEN = 4096
"""Requests under way at a time where they come by rate; further ones are counted as not sent."""
_NOT_SENT = f"not sent: {_MOST_OPEN} under way already"


OnDone = Callable[[Conversation, Outcome], None]


class Run:
    """A load that runs. What has been seen so far is in `measured`, also where it is stopped."""

    def __init__(self, target: Target, load: Load, span: RunLength, drawn: WorkloadSampler, seed: int) -> None:
        """drawn: the requests. on_done, if it is set, is called with each that is over, those of the warm-up too."""
        self._target, self._load, self._span, self._drawn = target, load, span, drawn
        self._chance = random.Random(f"{seed}/arrivals")
        self.on_done: OnDone | None = None
        self._texts = drawn.talks
        now = time.perf_counter()
        self._stop = now + span.warmup_s + span.limit_s
        self.measured = RunStats(load, now + span.warmup_s)
        self.under_way = 0
        self._counted = 0

    async def go(self, http: aiohttp.ClientSession) -> RunStats:
        """Runs it to its end. Cancelled, it leaves what was seen until then."""
        measured = self.measured
        if self._span.requests == 0:
            measured.until = self._stop
        try:
            await (self._closed(http) if self._load.kind == "concurrency" else self._open(http))
        except asyncio.CancelledError:
            measured.whole = False
            measured.until = min(measured.until, time.perf_counter())
            raise
        measured.until = min(measured.until, time.perf_counter())
        return measured

    def _more(self) -> bool:
        """Whether another request may begin; counts it."""
        now = time.perf_counter()
        if now >= self._stop or self._counted >= self._span.most:
            return False
        self._counted += now >= self.measured.began
        return True

    async def _closed(self, http: aiohttp.ClientSession) -> None:
        async def lane() -> None:
            while self._more():
                await self._one(http, self._drawn.next())

        async with asyncio.TaskGroup() as group:
            for _ in range(int(self._load.value)):
                group.create_task(lane())

    async def _open(self, http: aiohttp.ClientSession) -> None:
        due = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for _ in itertools.count():
                due += self._chance.expovariate(self._load.value)
                await asyncio.sleep(max(0.0, due - time.perf_counter()))
                if not self._more():
                    return
                self.measured.late.add(time.perf_counter() - due)
                conversation = self._drawn.next()
                if self.under_way >= _MOST_OPEN:
                    self.measured.errors[_NOT_SENT] += 1
                    continue
                group.create_task(self._one(http, conversation))

    async def _one(self, http: aiohttp.ClientSession, conversation: Conversation) -> None:
        self.under_way += 1
        try:
            body = self._target.body(conversation.messages, conversation.output)
            outcome = await ask(http, self._target.url, body, text=self._texts)
        finally:
            self.under_way -= 1
        self.measured.add(outcome)
        if self.on_done is not None:
            self.on_done(conversation, outcome)
        self._drawn.answered(conversation, outcome.text)
