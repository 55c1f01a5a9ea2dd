"""Where the tokens of a generation come from: this router's engines, or another router first and then the engines."""

import asyncio
import time
from collections import defaultdict
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from typing import Protocol

import msgspec

from deployments.cache.flight_lease import FlightLease
from deployments.common.errors import ApiError
from deployments.common.messages import EngineRequest, TokenBatch
from deployments.observability.tracing import current
from deployments.routing.dispatcher import Dispatcher
from deployments.routing.fair_queue import FairQueue, Slot
from deployments.routing.prefix_index import PrefixLocation
from deployments.routing.queue_class import QueueClass, TokenCost

_MAX_EXPECTED = 2048
"""A completion is expected to take at most this many tokens until it has: few take all that they may."""


class TokenSource(Protocol):
    """Yields the tokens of each choice of one generation, stage by stage: the thinking apart and then the rest, or all
    at once."""

    def tokens(self, choice: int, stage: int, request: EngineRequest) -> AsyncGenerator[TokenBatch, None]:
        """Every token once, in order; the last batch has a finish reason. Closing the generator cancels the work."""

    def done(self, choice: int) -> None:
        """Ends the work on a choice that needs no more tokens."""


class EngineSource:
    """Generates tokens on this router's engines. Each choice waits for a slot; `close` releases the slots."""

    def __init__(
        self,
        dispatcher: Dispatcher,
        queue: FairQueue,
        queue_class: QueueClass,
        observe_wait: Callable[[float], object],
    ) -> None:
        """queue_class: of the request. observe_wait: called with the seconds that each choice waited for its slot."""
        self.prefix = PrefixLocation()
        """Where the start of the prompt is cached."""
        self.refused = False
        """Whether the queue was too full for all queue classes of this request."""
        self._dispatcher = dispatcher
        self._queue = queue
        self._classes = [queue_class]
        self._observe_wait = observe_wait
        self._waiting: dict[int, TokenCost] = {}
        self._slots: dict[int, Slot] = {}
        self._used: defaultdict[int, int] = defaultdict(int)

    @property
    def queue_class(self) -> QueueClass:
        """The most urgent queue class of those who want these tokens."""
        return min(self._classes, key=lambda queue_class: queue_class.urgency)

    def lift(self, queue_class: QueueClass) -> None:
        """Somebody with this queue class wants the tokens too: what has no slot yet gets the better class."""
        if queue_class not in self._classes:
            self._classes.append(queue_class)
            for choice in tuple(self._waiting):
                self._lift_waiting(choice, queue_class)

    def check_room(self) -> None:
        """Raises ApiError 503 if the queue is too full for all queue classes of this request."""
        refusals = [self._queue.refusal(queue_class.team) for queue_class in self._classes]
        if refusals[0] is not None and None not in refusals:
            self.refused = True
            raise refusals[0]

    async def tokens(
        self, choice: int, stage: int, request: EngineRequest, generated: Sequence[int] = ()
    ) -> AsyncGenerator[TokenBatch, None]:
        """generated: the first tokens, where they exist already. Raises ApiError 503 when too many requests wait."""
        if choice not in self._slots:
            await self._acquire_slot(choice, request, len(generated))
            self._used[choice] += len(request.prompt_ids)
        request = msgspec.structs.replace(
            request,
            queued_tokens=self._queue.scaling_tokens,
            scales=self._queue.scales(batch=self.queue_class.batch),
            prefix_replica=self.prefix.replica,
            prefix_tokens=self.prefix.tokens,
            priority=self.queue_class.priority,
        )
        async with aclosing(self._dispatcher.stream(request, generated)) as stream:
            async for batch in stream:
                self._slots[choice].prefill_done()
                self._used[choice] += len(batch.ids)
                yield batch

    def done(self, choice: int) -> None:
        if (slot := self._slots.pop(choice, None)) is not None:
            slot.release(self._used[choice])

    def close(self) -> None:
        for choice in tuple(self._slots):
            self.done(choice)

    async def _acquire_slot(self, choice: int, request: EngineRequest, generated: int) -> None:
        left = min(request.sampling.max_tokens - generated, _MAX_EXPECTED)
        started, tried = time.perf_counter(), 0
        with current.get().child("queue"):
            while choice not in self._slots:
                # A team's full queue is no reason to refuse a request that another team wants too.
                queue_class = self._classes[tried]
                tried += 1
                cost = TokenCost(len(request.prompt_ids) + generated, left, queue_class.batch)
                self._waiting[choice] = cost
                for other in self._classes:
                    if other is not queue_class:  # once the choice is in the queue
                        asyncio.get_running_loop().call_soon(self._lift_waiting, choice, other)
                try:
                    self._slots[choice] = await self._queue.acquire(queue_class.team, queue_class.weight, cost)
                except ApiError:
                    if tried == len(self._classes):
                        self.refused = True
                        raise
                finally:
                    del self._waiting[choice]
        self._observe_wait(time.perf_counter() - started)

    def _lift_waiting(self, choice: int, queue_class: QueueClass) -> None:
        if (cost := self._waiting.get(choice)) is not None:
            self._waiting[choice] = self._queue.lift(cost, queue_class)


class FlightSource:
    """Follows another router while it leads the flight. Generates what is missing, and publishes that to the others."""

    def __init__(self, lease: FlightLease, engines: EngineSource, charge: Callable[[], Awaitable[None]]) -> None:
        """charge: called before the engines generate anything; may refuse by raising ApiError 429."""
        self._lease = lease
        self._engines = engines
        self._charge = charge

    async def tokens(self, choice: int, stage: int, request: EngineRequest) -> AsyncGenerator[TokenBatch, None]:
        generated: list[int] = []
        async with aclosing(self._lease.follow(choice, stage)) as followed:
            async for batch in followed:
                generated += batch.ids
                yield batch
                if batch.finish_reason:
                    return
        await self._charge()
        async with aclosing(self._engines.tokens(choice, stage, request, generated)) as rest:
            async for batch in rest:
                self._lease.record(choice, stage, batch)
                yield batch

    def done(self, choice: int) -> None:
        self._engines.done(choice)
