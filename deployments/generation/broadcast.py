"""A generation under way, and those who follow it: each gets all of it, from its first token, at a pace of its own."""

import asyncio
import math
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from contextvars import Context
from types import TracebackType

from deployments.common.deadlines import Deadline
from deployments.common.errors import ApiError
from deployments.common.types import Delta, GenerationResult
from deployments.observability.logs import request_id
from deployments.observability.tracing import current

_LOOK_S = 0.5


class Broadcast:
    """Runs in a task of its own from the start; ends early when its last follower has gone and nobody else wants it."""

    def __init__(
        self,
        deltas: AsyncGenerator[Delta, None],
        landed: Callable[[], Awaitable[GenerationResult]],
        wanted: Callable[[], Awaitable[bool]] | None = None,
    ) -> None:
        """landed: called when all deltas have come; gives the whole answer. wanted: whether others follow elsewhere."""
        self._deltas: list[Delta] = []
        self._followers: set[Subscriber] = set()
        self._landed = landed
        self._wanted = wanted
        self._lingering: asyncio.Task[None] | None = None
        self.result: GenerationResult | None = None
        self.failure: Exception | None = None
        self.span = current.get()
        """Of the request that it was begun for."""
        self.task = asyncio.create_task(self._run(deltas), context=_apart())

    @property
    def ended(self) -> bool:
        return self.result is not None or self.failure is not None

    @property
    def joinable(self) -> bool:
        """Whether one more may follow: it is under way, and nobody is ending it."""
        return not self.ended and not self.task.cancelling()

    def subscribe(self, deadline: float = math.inf) -> "Subscriber":
        """One more follower; it is to leave. deadline: until when it waits, on the clock of time.perf_counter."""
        follower = Subscriber(self, deadline)
        self._followers.add(follower)
        return follower

    def _left(self, follower: "Subscriber") -> None:
        self._followers.discard(follower)
        if self._followers or self.ended:
            return
        if self._wanted is None:
            self.task.cancel()
        elif self._lingering is None or self._lingering.done():
            self._lingering = asyncio.create_task(self._linger(self._wanted))

    async def _linger(self, wanted: Callable[[], Awaitable[bool]]) -> None:
        """Goes on while somebody follows elsewhere, or comes back."""
        while not self._followers and not self.ended:
            if not await wanted():
                if not self._followers:
                    self.task.cancel()
                return
            await asyncio.sleep(_LOOK_S)

    async def _run(self, deltas: AsyncGenerator[Delta, None]) -> None:
        try:
            async with aclosing(deltas):
                async for delta in deltas:
                    self._deltas.append(delta)
                    self._wake()
            self.result = await self._landed()
        except asyncio.CancelledError:
            self.failure = ApiError(500, "The answer was given up.", code="internal_error", kind="server_error")
            self._wake()
            raise
        except Exception as error:  # noqa: BLE001 - every follower raises it
            self.failure = error
        self._wake()

    def _wake(self) -> None:
        for follower in self._followers:
            follower.arrived.set()


class Subscriber:
    """One who follows a flight, until it leaves: at the end of its context."""

    def __init__(self, flight: Broadcast, deadline: float) -> None:
        self.arrived = asyncio.Event()
        self.on_close: Callable[[], None] = _nothing
        """Called when it leaves."""
        self._flight = flight
        self._deadline = deadline
        self._seen = 0

    def __enter__(self) -> "Subscriber":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._flight._left(self)
        self.on_close()

    async def next_batch(self, watchdog: Deadline, patience_s: float = math.inf) -> list[Delta]:
        """What has come since the last call; waits for it, at most so long. Empty: nothing came, or all is told.

        watchdog: of the task that calls.
        Raises what ended the flight, once all that came before has been told; ApiError 408 after the deadline.
        """
        flight = self._flight
        if self._seen == len(flight._deltas) and not flight.ended:
            self.arrived.clear()
            patience = min(self._deadline - time.perf_counter(), patience_s)
            try:
                await watchdog.wait(self.arrived.wait(), patience)
            except TimeoutError:
                if time.perf_counter() < self._deadline:
                    return []
                raise _too_late() from None
        if self._seen < len(flight._deltas):
            news = flight._deltas[self._seen :]
            self._seen += len(news)
            return news
        if flight.failure is not None:
            raise flight.failure
        return []

    @property
    def result(self) -> GenerationResult | None:
        """The whole answer, once all of it has been told."""
        return self._flight.result if self._seen == len(self._flight._deltas) else None


def _apart() -> Context:
    """A context that knows the request's id and span, and nothing that Serve holds by it: when the client of a request
    leaves, Serve cancels all calls to engines that were made in its context, whoever else follows (ray 2.60)."""
    context = Context()
    context.run(request_id.set, request_id.get())
    context.run(current.set, current.get())
    return context


def _nothing() -> None:
    pass


def _too_late() -> ApiError:
    return ApiError(
        408,
        "Not finished within the time that a request may take. Ask for fewer tokens.",
        code="request_timeout",
        kind="timeout_error",
    )


def to_api_error(error: Exception) -> ApiError:
    """What a client is told of a failure midway."""
    if isinstance(error, ApiError):
        return error
    return ApiError(500, "The server failed on this request.", code="internal_error", kind="server_error")
