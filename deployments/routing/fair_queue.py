"""Requests wait here, not in the engines, so that teams share capacity by weight and people go before batches.

Start-time fair queueing (Goyal, Vin and Cheng, 1996) over tokens: a request's start tag is the virtual time at which
its team's last request is paid for, or the present virtual time, if that is later; the request with the lowest tag goes
first. So a team that floods waits behind itself. Four rules go beyond the paper:

- A few slots are reserved for teams that have nothing running, and no team takes nearly all slots while others ask too:
  each further stream delays everybody's next token, and speeds the engine up little.
- A team with connections at several routers has, at each, the part of its weight that its requests there are of all its
  requests (deployments.routing.division).
- The engines get no more prompts than a step takes. A further prompt waits here, where others can overtake it, and not
  behind a hundred in an engine.
- Batches take at most half of the slots while people ask, and leave a few free for the next one who does.
"""

import asyncio
import heapq
import itertools
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

from deployments.common.errors import ApiError, overloaded
from deployments.routing.active_teams import ActiveTeams
from deployments.routing.demand import MAX_TEAMS, RouterDemand, TeamDemand
from deployments.routing.division import RouterPart
from deployments.routing.queue_class import QueueClass, TokenCost
from deployments.routing.token_rate import TokenRate
from deployments.routing.waiting_line import QueuedTeam, WaitingLine, WaitingRequest

ANYONE = ""
"""The team of requests without a key."""
_LATEST_S = 60


class Slot:
    """A running request's slot at the engines, until it is released."""

    __slots__ = ("_cost", "_prefill_done", "_queue", "_team", "_weight")

    def __init__(self, queue: "FairQueue", team: str, weight: float, cost: TokenCost) -> None:
        self._queue, self._team, self._weight, self._cost = queue, team, weight, cost
        self._prefill_done = False

    def prefill_done(self) -> None:
        """The prompt has been computed: the first token is there. May be called again."""
        if not self._prefill_done:
            self._prefill_done = True
            self._queue._prefill_ended(self._cost.prompt_tokens)

    def release(self, used: int) -> None:
        """Gives the slot back. used: tokens that the request took, by which its team is charged in the end."""
        self.prefill_done()
        self._queue._release(self._team, (used - self._cost.tokens) / self._weight, used, batch=self._cost.batch)


class FairQueue:
    """The slots of one model's engines that one router fills."""

    def __init__(
        self,
        slots: int = 1,
        max_queued: int = 1,
        max_prefill_tokens: int = 1,
        track_wait: Callable[[], AbstractContextManager[object]] = nullcontext,
        clock: Callable[[], float] = time.monotonic,
        *,
        batches_scale: bool = False,
    ) -> None:
        """slots: requests that run at a time. max_queued, max_prefill_tokens: as `resize` takes them. track_wait:
        entered while one of people waits. batches_scale: whether replicas are added for batches."""
        self.part, self._max_queued, self._max_prefill_tokens = RouterPart.even(slots), max_queued, max_prefill_tokens
        self._track_wait = track_wait
        self._batches_scale = batches_scale
        self._teams: dict[str, QueuedTeam] = {}
        """Teams with a request here, or charged beyond the present virtual time."""
        self._active = ActiveTeams(clock)
        self._waiting = WaitingLine()
        self._arrivals = itertools.count()
        self._virtual_time = 0.0
        self._running = 0
        self._running_batches = 0
        self._prefilling_tokens = 0
        self._rate = TokenRate(clock)

    def resize(self, part: RouterPart, max_queued: int, max_prefill_tokens: int) -> None:
        """part: the slots. max_queued: requests that wait beyond these; the team with the most loses its last.
        max_prefill_tokens: of prompts that the engines have and have not computed; a longer prompt goes alone."""
        self.part, self._max_queued, self._max_prefill_tokens = part, max_queued, max_prefill_tokens
        self._grant()

    def demand(self) -> RouterDemand:
        """What the teams have here and what they wait for."""
        teams = {name: TeamDemand(weight) for name, weight in self._active.weights().items()}
        for name, state in self._teams.items():
            if count := state.running + self._waiting.waiting(name):
                batches = state.running_batches + self._waiting.batches(name)
                teams[name] = TeamDemand(state.weight, count - batches, batches)
        most = heapq.nlargest(MAX_TEAMS, teams, key=lambda name: teams[name].requests)
        return RouterDemand(self._running, {name: teams[name] for name in most})

    @property
    def queued(self) -> int:
        """Requests that wait."""
        return self._waiting.count

    @property
    def queued_tokens(self) -> int:
        """The expected cost of all waiting requests."""
        return self._waiting.tokens

    @property
    def scaling_tokens(self) -> int:
        """The expected cost of the waiting requests for which replicas are added."""
        return self._waiting.tokens - (0 if self._batches_scale else self._waiting.batch_tokens)

    def scales(self, *, batch: bool) -> bool:
        """Whether replicas are added for a request of people, or of a batch."""
        return self._batches_scale or not batch

    @property
    def running(self) -> int:
        """Slots in use."""
        return self._running

    async def acquire(self, team: str, weight: float, cost: TokenCost) -> Slot:
        """Waits for a slot. Raises ApiError 503 when too many requests wait."""
        state = self._teams.setdefault(team, QueuedTeam())
        state.weight = weight
        if not cost.batch:
            self._active.note(team, weight)
        weight = self._weight_here(team, weight)
        start_tag, virtual_cost = max(self._virtual_time, state.paid_until), cost.tokens / weight
        if not self._waiting.count and self._may_start(team, cost):
            self._start(state, start_tag, virtual_cost, cost)
            return Slot(self, team, weight, cost)
        self._make_room(team)
        state.paid_until = start_tag + virtual_cost
        granted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        number = next(self._arrivals)
        request = WaitingRequest(cost.batch, start_tag, number, team, weight, virtual_cost, cost, granted)
        self._waiting.add(request)
        self._grant()
        try:
            with nullcontext() if cost.batch else self._track_wait():
                await granted
        except asyncio.CancelledError:
            if granted.cancelled():
                if not request.left:
                    self._forget(request)
            elif granted.exception() is None:  # else it was refused at the same moment, and is forgotten already
                self._prefill_ended(cost.prompt_tokens)
                self._release(request.team, -request.virtual_cost, 0, batch=request.batch)
            raise
        return Slot(self, request.team, request.weight, request.cost)

    def lift(self, cost: TokenCost, queue_class: QueueClass) -> TokenCost:
        """Gives the request that waits with this very `cost` the better of its own queue class and this one.

        People go before batches, and the request moves to the other team's queue if its turn comes earlier there. Does
        nothing once it has its slot. Returns the cost with which it waits now.
        """
        if (request := self._waiting.find(cost)) is None:
            return cost
        self._waiting.remove(request)
        request.batch = request.batch and queue_class.batch
        request.cost = replace(cost, batch=request.batch)
        if not queue_class.batch:
            self._active.note(queue_class.team, queue_class.weight)
        state = self._teams.setdefault(queue_class.team, QueuedTeam())
        start_tag = max(self._virtual_time, state.paid_until)
        former = request.team
        if start_tag < request.start_tag and queue_class.team != former:
            self._teams[former].paid_until -= request.virtual_cost
            state.weight = queue_class.weight
            weight = self._weight_here(queue_class.team, queue_class.weight)
            request.team, request.weight, request.start_tag = queue_class.team, weight, start_tag
            request.virtual_cost = cost.tokens / weight
            state.paid_until = start_tag + request.virtual_cost
        self._waiting.add(request)
        self._drop_if_idle(former)
        self._drop_if_idle(queue_class.team)
        self._grant()
        return request.cost

    def refusal(self, team: str) -> ApiError | None:
        """The error that a request of this team would get if it had to wait now; None: it may."""
        line = self._waiting
        full = line.count >= self._max_queued and line.waiting(team) + 1 >= line.waiting(line.largest)
        return self._overloaded() if full else None

    def wait_s(self) -> float:
        """Seconds until the requests that wait now will have been answered, at the present rate; 0: it is unknown."""
        return self._rate.seconds_for(self.queued_tokens)

    @property
    def _shared(self) -> bool:
        """Whether teams share the engines; without keys all requests belong to one."""
        return len(self._teams) > 1 or ANYONE not in self._teams

    def _may_start(self, team: str, cost: TokenCost) -> bool:
        """Whether the team may take another slot now."""
        prefilling = self._prefilling_tokens
        if self._shared and prefilling and prefilling + cost.prompt_tokens > self._max_prefill_tokens:
            return False
        if cost.batch and self._running_batches >= self.part.max_batches(people_ask=self._active.anybody):
            return False
        free, running = self.part.slots - self._running, self._teams[team].running
        everywhere = running + self.part.elsewhere.get(team, 0)
        if not (everywhere and self._shared) or everywhere < self.part.fair_share * self._teams[team].weight:
            return free > 0
        if free <= self.part.reserved:
            return False
        return running < max(self.part.max_team_slots, self.part.slots * self._active.share_of(team))

    def _weight_here(self, team: str, weight: float) -> float:
        """The part of the team's weight that one more request here has."""
        if not (elsewhere := self.part.elsewhere.get(team, 0)):
            return weight
        here = self._teams[team].running + self._waiting.waiting(team) + 1
        return weight * max(self.part.min_weight, here / (here + elsewhere))

    def _start(self, state: QueuedTeam, start_tag: float, virtual_cost: float, cost: TokenCost) -> None:
        state.paid_until = max(state.paid_until, start_tag + virtual_cost)
        state.running += 1
        state.running_batches += cost.batch
        self._running += 1
        self._running_batches += cost.batch
        self._prefilling_tokens += cost.prompt_tokens
        self._virtual_time = max(self._virtual_time, start_tag)

    def _prefill_ended(self, prompt_tokens: int) -> None:
        self._prefilling_tokens -= prompt_tokens
        self._grant()

    def _grant(self) -> None:
        """Gives free slots to waiting requests, in their order; a team whose next one may not start yet is passed
        over."""
        if self._running >= self.part.slots or not self._waiting.count:
            return
        heads = self._waiting.firsts()
        while heads and self._running < self.part.slots:
            request = heapq.heappop(heads)
            if request.granted.done():  # it was cancelled, and its task has not run since
                self._forget(request)
            elif self._may_start(request.team, request.cost):
                self._waiting.remove(request)
                self._start(self._teams[request.team], request.start_tag, request.virtual_cost, request.cost)
                request.granted.set_result(None)
            elif self._prefilling_tokens >= self._max_prefill_tokens:
                break
            else:
                continue
            if (following := self._waiting.first(request.team)) is not None:
                heapq.heappush(heads, following)

    def _release(self, team: str, correction: float, used: int, *, batch: bool) -> None:
        """correction: of what the team was charged at the start, in virtual time."""
        state = self._teams[team]
        state.running -= 1
        state.running_batches -= batch
        state.paid_until += correction
        self._running -= 1
        self._running_batches -= batch
        self._active.forget_inactive()
        self._rate.note(used)
        if not self._running and not self.queued:
            # Nobody waited for what was used until now, so no team owes another anything.
            self._teams.clear()
            self._virtual_time = 0.0
            return
        self._drop_if_idle(team)
        self._grant()

    def _make_room(self, team: str) -> None:
        """Where too many wait, refuses the last request of the team with the most: this one, if that is the team."""
        if self.queued < self._max_queued:
            return
        if (refusal := self.refusal(team)) is not None:
            self._drop_if_idle(team)
            raise refusal
        if (last := self._waiting.last(self._waiting.largest)) is not None:
            self._forget(last)
            last.granted.set_exception(self._overloaded())

    def _overloaded(self) -> ApiError:
        return overloaded("Too many requests are waiting. Try again later.", round(min(_LATEST_S, self.wait_s())) or 1)

    def _forget(self, request: WaitingRequest) -> None:
        """Takes a request out of the queue; its team is not charged for it."""
        if not request.left:
            self._waiting.remove(request)
        self._teams[request.team].paid_until -= request.virtual_cost
        self._drop_if_idle(request.team)

    def _drop_if_idle(self, team: str) -> None:
        state = self._teams[team]
        if not state.running and not self._waiting.waiting(team) and state.paid_until <= self._virtual_time:
            del self._teams[team]
