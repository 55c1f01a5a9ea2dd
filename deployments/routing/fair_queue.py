"""Whose turn it is: requests wait here, not in the engines, so that teams share by weight and people go before batches.

Start-time fair queueing (Goyal, Vin and Cheng, 1996) over tokens: a request's start tag is where its team's last one
will have been paid for, or now, if that is past; the least tag goes first. So a team that floods waits behind itself.
A few places are kept for teams that have nothing under way, and no team takes nearly all while others ask too: each
more stream makes everybody's next token later, and the engine hardly faster. And the engines are handed no more prompts
than a step takes up: a prompt that comes waits here, where others can be let by, and not behind a hundred in an engine.
"""

import asyncio
import heapq
import itertools
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

from deployments.common.errors import overloaded

ANYONE = ""
"""The team of requests without a key."""
_KEPT_FREE = 8
"""One place in so many is for teams that have nothing under way."""
_MOST_OF_ONE = 5 / 8
"""Share of the places that one team may have while others ask too, if its weight does not give it more."""
_LATELY_S = 60.0
"""A team asks too that has asked within this time."""
_BATCH_SHARE = 2
"""Batches take at most one place in so many."""
_RATE_OVER_S = 10.0
_LONGEST_WAIT_S = 60


@dataclass(slots=True)
class _TeamQueue:
    """A team's requests at one model. paid: its tag, in tokens over weight."""

    paid: float = 0.0
    running: int = 0
    waiting: int = 0


@dataclass(frozen=True, slots=True)
class TokenCost:
    """What a request is thought to take, in tokens. batch: it goes after those for people."""

    prompt_tokens: int
    completion_tokens: int
    batch: bool = False


@dataclass(slots=True, order=True)
class _Waiting:
    """A request that waits. Ordered: people first, then by tag, then as they came."""

    batch: bool
    tag: float
    number: int
    team: str = field(compare=False)
    cost: float = field(compare=False)
    prompt: int = field(compare=False)
    granted: asyncio.Future[None] = field(compare=False)


class Slot:
    """A place at the engines, until it is given back."""

    __slots__ = ("_begun", "_queue", "_team", "_weight", "_work")

    def __init__(self, queue: "FairQueue", team: str, weight: float, work: TokenCost) -> None:
        self._queue, self._team, self._weight, self._work = queue, team, weight, work
        self._begun = False

    def prefill_done(self) -> None:
        """Its prompt has been computed: its first token is there."""
        if not self._begun:
            self._begun = True
            self._queue._prefilled(self._work.prompt_tokens)

    def release(self, used: int) -> None:
        """Gives it back. used: tokens that it has cost in truth."""
        self.prefill_done()
        thought = self._work.prompt_tokens + self._work.completion_tokens
        self._queue._end(self._team, (used - thought) / self._weight, used, batch=self._work.batch)


class FairQueue:
    """The places of one model's engines that one router fills."""

    def __init__(
        self,
        places: int = 1,
        most_waiting: int = 1,
        prompts: int = 1,
        waits: Callable[[], AbstractContextManager[object]] = nullcontext,
    ) -> None:
        """As `resize` takes them. waits: entered for as long as a request waits."""
        self._places, self._most_waiting, self._prompts = places, most_waiting, prompts
        self._prefilling = 0
        self._waits = waits
        self._lanes: dict[str, _TeamQueue] = {}
        self._asked: dict[str, tuple[float, float]] = {}
        """When each team that asks has asked last, and its weight; the latest at the end."""
        self._waiting: list[_Waiting] = []
        self._numbers = itertools.count()
        self._now = 0.0
        self._running = 0
        self._batches = 0
        self._rate = 0.0
        self._ended = time.monotonic()

    def resize(self, places: int, most_waiting: int, prompts: int) -> None:
        """places: requests under way at a time. most_waiting: beyond them; the team with the most loses its last.
        prompts: tokens of those that are handed over and not computed; a longer prompt goes alone."""
        self._places, self._most_waiting, self._prompts = max(1, places), most_waiting, prompts
        self._grant()

    @property
    def _shared(self) -> bool:
        return len(self._lanes) > 1 or ANYONE not in self._lanes

    @property
    def waiting(self) -> int:
        return sum(lane.waiting for lane in self._lanes.values())

    @property
    def queued_tokens(self) -> int:
        """Those that all who wait are thought to take."""
        return round(sum(one.cost for one in self._live()))

    @property
    def running(self) -> int:
        return self._running

    async def acquire(self, team: str, weight: float, work: TokenCost) -> Slot:
        """Waits for a place. Raises ApiError 503 when too many wait."""
        lane = self._lanes.setdefault(team, _TeamQueue())
        if not work.batch:
            self._asked.pop(team, None)
            self._asked[team] = (time.monotonic(), weight)
        tag, cost = max(self._now, lane.paid), (work.prompt_tokens + work.completion_tokens) / weight
        if not self._waiting and self._free_for(team, work.prompt_tokens, batch=work.batch):
            self._take(lane, tag, cost, work.prompt_tokens, batch=work.batch)
            return Slot(self, team, weight, work)
        self._make_room(team)
        lane.paid = tag + cost
        lane.waiting += 1
        granted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        one = _Waiting(work.batch, tag, next(self._numbers), team, cost, work.prompt_tokens, granted)
        heapq.heappush(self._waiting, one)
        self._grant()
        try:
            with self._waits():
                await one.granted
        except asyncio.CancelledError:
            if granted.cancelled():
                self._forget(one)
            elif granted.exception() is None:  # else it was refused in this moment, and is forgotten already
                self._prefilled(work.prompt_tokens)
                self._end(team, -cost, 0, batch=work.batch)
            raise
        return Slot(self, team, weight, work)

    def _free_for(self, team: str, prompt: int, *, batch: bool) -> bool:
        if self._shared and self._prefilling and self._prefilling + prompt > self._prompts:
            return False
        free = self._places - self._running
        if batch and self._batches >= max(1, self._places // _BATCH_SHARE):
            return False
        running = self._lanes[team].running
        if not (running and self._shared):
            return free > 0
        if free <= self._places // _KEPT_FREE:
            return False
        return running < self._places * _MOST_OF_ONE or running < self._places * self._share_of(team)

    def _share_of(self, team: str) -> float:
        """What its weight gives the team among those that ask."""
        _, weight = self._asked.get(team, (0.0, 0.0))
        others = sum(one for _, one in self._asked.values()) - weight
        return weight / (weight + others) if others else 1.0

    def _forget_silent(self) -> None:
        earliest = time.monotonic() - _LATELY_S
        while self._asked and self._asked[team := next(iter(self._asked))][0] < earliest:
            del self._asked[team]

    def _prefilled(self, prompt: int) -> None:
        self._prefilling -= prompt
        self._grant()

    def _take(self, lane: _TeamQueue, tag: float, cost: float, prompt: int, *, batch: bool) -> None:
        self._prefilling += prompt
        lane.paid = max(lane.paid, tag + cost)
        lane.running += 1
        self._running += 1
        self._batches += batch
        self._now = max(self._now, tag)

    def _grant(self) -> None:
        """Gives free places to those who wait, in their order; who may not have one lets the next have it."""
        passed = []
        while self._waiting and self._running < self._places:
            one = heapq.heappop(self._waiting)
            lane = self._lanes[one.team]
            if one.granted.done():
                continue
            if not self._free_for(one.team, one.prompt, batch=one.batch):
                passed.append(one)
                if self._prefilling >= self._prompts:
                    break
                continue
            lane.waiting -= 1
            self._take(lane, one.tag, one.cost, one.prompt, batch=one.batch)
            one.granted.set_result(None)
        for one in passed:
            heapq.heappush(self._waiting, one)

    def _end(self, team: str, correction: float, used: int, *, batch: bool) -> None:
        lane = self._lanes[team]
        lane.running -= 1
        lane.paid += correction
        self._running -= 1
        self._batches -= batch
        self._forget_silent()
        now = time.monotonic()
        since, self._ended = now - self._ended, now
        self._rate += (used / max(since, 1e-3) - self._rate) * min(1.0, since / _RATE_OVER_S)
        if not self._running and not self.waiting:
            # Nobody waited for what was used until now: no team owes another anything.
            self._lanes.clear()
            self._now = 0.0
            return
        self._tidy(team)
        self._grant()

    def _make_room(self, team: str) -> None:
        """Where too many wait, the last one of the team with the most is refused: this one, if that is its own."""
        if self.waiting < self._most_waiting:
            return
        most = max(self._lanes, key=lambda name: self._lanes[name].waiting)
        refused = overloaded("Too many requests are waiting. Try again later.", self.wait_s())
        if self._lanes[team].waiting + 1 >= self._lanes[most].waiting:
            self._tidy(team)
            raise refused
        last = max(one for one in self._live() if one.team == most)
        self._forget(last)
        last.granted.set_exception(refused)

    def wait_s(self) -> int:
        """Seconds until what waits now will have been answered, by the pace of the last ones."""
        tokens = sum(one.cost for one in self._live())
        return max(1, min(_LONGEST_WAIT_S, round(tokens / self._rate))) if self._rate else 1

    def _live(self) -> Iterator[_Waiting]:
        return (one for one in self._waiting if not one.granted.done())

    def _forget(self, one: _Waiting) -> None:
        lane = self._lanes[one.team]
        lane.waiting -= 1
        lane.paid -= one.cost
        if one in self._waiting:
            self._waiting.remove(one)
            heapq.heapify(self._waiting)
        self._tidy(one.team)

    def _tidy(self, team: str) -> None:
        lane = self._lanes[team]
        if not lane.running and not lane.waiting and lane.paid <= self._now:
            del self._lanes[team]
