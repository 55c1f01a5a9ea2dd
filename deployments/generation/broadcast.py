"""A running generation and its subscribers: each gets all of it, from the first token, at its own pace."""

import asyncio
import logging
import math
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from contextvars import Context
from types import TracebackType

from deployments.common.deadlines import Deadline
from deployments.common.errors import ApiError
from deployments.common.types import Delta, GenerationResult, Usage
from deployments.observability.logs import request_id
from deployments.observability.tracing import current

log = logging.getLogger("dray.generation")

_POLL_S = 0.5
_UNKNOWN = Usage(0, 0, 0, 0)


class Broadcast:
    """Runs in its own task from the start. Ends early when the last subscriber has left and no other router follows."""

    def __init__(
        self,
        deltas: AsyncGenerator[Delta, None],
        complete: Callable[[], Awaitable[GenerationResult]],
        has_followers: Callable[[], Awaitable[bool]] | None = None,
        usage: Callable[[], Usage] = lambda: _UNKNOWN,
    ) -> None:
        """complete: called after the last delta; returns the whole result. has_followers: whether other routers follow;
        None: they never do. usage: what is known of it so far."""
        self.deltas: list[Delta] = []
        self._subscribers: set[Subscriber] = set()
        self._complete = complete
        self._has_followers = has_followers
        self.usage = usage
        self._lingering: asyncio.Task[None] | None = None
        self.result: GenerationResult | None = None
        self.failure: Exception | None = None
        self.span = current.get()
        """Of the request that started the generation."""
        self.task = asyncio.create_task(self._run(deltas), context=_own_context())

    @property
    def ended(self) -> bool:
        return self.result is not None or self.failure is not None

    @property
    def joinable(self) -> bool:
        """Whether another request may subscribe: the generation runs, and nobody is cancelling it."""
        return not self.ended and not self.task.cancelling()

    def subscribe(self, deadline: float = math.inf) -> "Subscriber":
        """Adds a subscriber, which must be closed. deadline: until when it waits, on time.perf_counter's clock."""
        subscriber = Subscriber(self, deadline)
        self._subscribers.add(subscriber)
        return subscriber

    def unsubscribe(self, subscriber: "Subscriber") -> None:
        """Removes a subscriber. Cancels the generation if that was the last one and no other router follows."""
        self._subscribers.discard(subscriber)
        if self._subscribers or self.ended:
            return
        if self._has_followers is None:
            self.task.cancel()
        elif self._lingering is None or self._lingering.done():
            self._lingering = asyncio.create_task(self._linger(self._has_followers))

    async def _linger(self, has_followers: Callable[[], Awaitable[bool]]) -> None:
        """Lets the generation run for as long as another router follows, or until somebody subscribes again."""
        try:
            while not self._subscribers and not self.ended:
                if not await has_followers():
                    break
                await asyncio.sleep(_POLL_S)
        except Exception:
            log.exception("cannot tell whether other routers follow a generation")
        if not self._subscribers:
            self.task.cancel()

    async def _run(self, deltas: AsyncGenerator[Delta, None]) -> None:
        try:
            async with aclosing(deltas):
                async for delta in deltas:
                    self.deltas.append(delta)
                    self._wake()
            self.result = await self._complete()
        except asyncio.CancelledError:
            self.failure = ApiError(500, "The generation was cancelled.", code="internal_error", kind="server_error")
            self._wake()
            raise
        except Exception as error:
            self.failure = error
            if not isinstance(error, ApiError):
                log.exception("a generation failed")
        self._wake()

    def _wake(self) -> None:
        for subscriber in self._subscribers:
            subscriber.arrived.set()


class Subscriber:
    """A request that receives a broadcast, until it is closed: at the end of its context."""

    def __init__(self, broadcast: Broadcast, deadline: float) -> None:
        self.arrived = asyncio.Event()
        self.on_close: Callable[[], None] = _nothing
        self.refusal: Exception | None = None
        """Why this request's own team could not have the generation; raised in place of the broadcast's failure."""
        self.first_at = 0.0
        """When its first delta was there, on time.perf_counter's clock; 0: none was yet."""
        self._expired: Exception | None = None
        self._broadcast = broadcast
        self._deadline = deadline
        self._index = 0

    def __enter__(self) -> "Subscriber":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Unsubscribes, and calls `on_close`."""
        self._broadcast.unsubscribe(self)
        on_close, self.on_close = self.on_close, _nothing  # it may refer to the subscriber, which then ends with it
        on_close()

    async def next_batch(self, watchdog: Deadline, timeout_s: float = math.inf) -> list[Delta]:
        """The deltas since the last call; waits up to `timeout_s` seconds for one. Empty: none arrived, or the end.

        watchdog: of the calling task.
        Raises what the broadcast failed with, after all deltas before the failure; ApiError 408 after the deadline.
        """
        broadcast = self._broadcast
        if self._index == len(broadcast.deltas) and not broadcast.ended:
            self.arrived.clear()
            left_s = self._deadline - time.perf_counter()
            try:
                await watchdog.wait(self.arrived.wait(), min(left_s, timeout_s))
            except TimeoutError:
                if time.perf_counter() < self._deadline:
                    return []
                self._expired = _deadline_exceeded()
                raise self._expired from None
        if deltas := broadcast.deltas[self._index :]:
            self._index += len(deltas)
            self.first_at = self.first_at or time.perf_counter()
            return deltas
        if broadcast.failure is not None:
            raise self.refusal or broadcast.failure
        return []

    @property
    def usage(self) -> Usage:
        """The tokens so far; zeros while nothing is known of them."""
        return self._broadcast.usage()

    @property
    def failure(self) -> Exception | None:
        """Why this request got no result; None: it did, or may still."""
        if self._expired is not None or self._broadcast.failure is None:
            return self._expired
        return self.refusal or self._broadcast.failure

    @property
    def result(self) -> GenerationResult | None:
        """The whole result, once every delta was received."""
        return self._broadcast.result if self._index == len(self._broadcast.deltas) else None


def _own_context() -> Context:
    """A context with the request's id and span, and without what Serve keeps there: when a request's client leaves,
    Serve cancels all engine calls made in its context, even if others follow the generation (ray 2.60)."""
    context = Context()
    context.run(request_id.set, request_id.get())
    context.run(current.set, current.get())
    return context


def _nothing() -> None:
    pass


def _deadline_exceeded() -> ApiError:
    return ApiError(
        408,
        "Not finished within the time that a request may take. Ask for fewer tokens.",
        code="request_timeout",
        kind="timeout_error",
    )


def to_api_error(error: Exception) -> ApiError:
    """The error that a client gets for a failure midway."""
    if isinstance(error, ApiError):
        return error
    return ApiError(500, "The server failed on this request.", code="internal_error", kind="server_error")
