"""Where a generation's tokens come from: the engines; or another router, as far as it came, and then the engines."""

import time
from collections import defaultdict
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Protocol

import msgspec

from deployments.cache.single_flight import FlightLease
from deployments.common.messages import EngineRequest, TokenBatch
from deployments.observability.tracing import current
from deployments.routing.dispatcher import Dispatcher
from deployments.routing.fair_queue import ANYONE, FairQueue, Slot, TokenCost

_MOST_EXPECTED = 2048
"""Tokens that a completion is thought to take at most, until it has: few take all that they may."""


class TokenSource(Protocol):
    """Gives the tokens of each choice of one generation, stage by stage: thinking apart, then the answer; or all."""

    def tokens(self, choice: int, stage: int, request: EngineRequest) -> AsyncGenerator[TokenBatch, None]:
        """Every token once, in order; the last message says why it ended. Closing it ends the work."""

    def done(self, choice: int) -> None:
        """No more of this choice is wanted."""


@dataclass(frozen=True, slots=True)
class QueueClass:
    """In whose turn tokens are made. batch: after those for people."""

    team: str = ANYONE
    weight: float = 1.0
    batch: bool = False


class EngineSource:
    """Made here, each choice when its turn has come. To be closed, which gives the turns back."""

    def __init__(
        self, dispatcher: Dispatcher, queue: FairQueue, lane: QueueClass, waited: Callable[[float], object]
    ) -> None:
        """waited: told how long each choice had to wait for its turn, in seconds."""
        self._waited = waited
        self._dispatcher = dispatcher
        self._queue = queue
        self._lane = lane
        self._turns: dict[int, Slot] = {}
        self._used: defaultdict[int, int] = defaultdict(int)

    async def tokens(
        self, choice: int, stage: int, request: EngineRequest, made: Sequence[int] = ()
    ) -> AsyncGenerator[TokenBatch, None]:
        """made: what of it is there already; it goes on from there. Raises ApiError 503 where too many wait."""
        if choice not in self._turns:
            left = min(request.sampling.max_tokens - len(made), _MOST_EXPECTED)
            work = TokenCost(len(request.prompt_ids) + len(made), left, self._lane.batch)
            came = time.perf_counter()
            with current.get().child("queue"):
                self._turns[choice] = await self._queue.acquire(self._lane.team, self._lane.weight, work)
            self._waited(time.perf_counter() - came)
            self._used[choice] += len(request.prompt_ids)
        location = await self._dispatcher.locate_prefix(request.prompt_ids)
        request = msgspec.structs.replace(
            request,
            queued_tokens=self._queue.queued_tokens,
            prefix_replica=location.replica,
            prefix_tokens=location.tokens,
        )
        async with aclosing(self._dispatcher.stream(request, made)) as stream:
            async for tokens in stream:
                self._turns[choice].prefill_done()
                self._used[choice] += len(tokens.ids)
                yield tokens

    def done(self, choice: int) -> None:
        if (turn := self._turns.pop(choice, None)) is not None:
            turn.release(self._used[choice])

    def close(self) -> None:
        for choice in tuple(self._turns):
            self.done(choice)


class FlightSource:
    """Followed while another router leads; what is missing is made here, and told to those who follow."""

    def __init__(self, flight: FlightLease, engines: EngineSource) -> None:
        self._flight = flight
        self._engines = engines

    async def tokens(self, choice: int, stage: int, request: EngineRequest) -> AsyncGenerator[TokenBatch, None]:
        made: list[int] = []
        async with aclosing(self._flight.follow(choice, stage)) as told:
            async for tokens in told:
                made += tokens.ids
                yield tokens
                if tokens.finish_reason:
                    return
        async with aclosing(self._engines.tokens(choice, stage, request, made)) as rest:
            async for tokens in rest:
                self._flight.record(choice, stage, tokens)
                yield tokens

    def done(self, choice: int) -> None:
        self._engines.done(choice)
