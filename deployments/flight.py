"""A generation under way, and those who follow it: each gets all of it, from its first token, at a pace of its own."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from types import TracebackType

from deployments.protocol.errors import ApiError
from deployments.question import Answer, Delta


class Flight:
    """Runs in a task of its own from the start; ends early when its last follower has gone."""

    def __init__(self, deltas: AsyncGenerator[Delta, None], landed: Callable[[], Awaitable[Answer]]) -> None:
        """landed: called when all deltas have come; gives the whole answer."""
        self._deltas: list[Delta] = []
        self._followers: set[Follower] = set()
        self._landed = landed
        self.answer: Answer | None = None
        self.failure: Exception | None = None
        self.task = asyncio.create_task(self._run(deltas))

    @property
    def ended(self) -> bool:
        return self.answer is not None or self.failure is not None

    def follow(self) -> "Follower":
        """One more follower, to be entered as a context."""
        return Follower(self)

    async def _run(self, deltas: AsyncGenerator[Delta, None]) -> None:
        try:
            async with aclosing(deltas):
                async for delta in deltas:
                    self._deltas.append(delta)
                    self._wake()
            self.answer = await self._landed()
        except Exception as error:  # noqa: BLE001 - every follower raises it
            self.failure = error
        self._wake()

    def _wake(self) -> None:
        for follower in self._followers:
            follower.arrived.set()


class Follower:
    """One who follows a flight. Leaving its context ends the flight if nobody else follows."""

    def __init__(self, flight: Flight) -> None:
        self.arrived = asyncio.Event()
        self._flight = flight
        self._seen = 0

    def __enter__(self) -> "Follower":
        self._flight._followers.add(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._flight._followers.discard(self)
        if not self._flight._followers and not self._flight.ended:
            self._flight.task.cancel()

    async def news(self, patience_s: float | None = None) -> list[Delta]:
        """What has come since the last call; waits for it, at most so long. Empty: nothing came, or all is told.

        Raises what ended the flight, once all that came before has been told.
        """
        flight = self._flight
        if self._seen == len(flight._deltas) and not flight.ended:
            self.arrived.clear()
            try:
                async with asyncio.timeout(patience_s):
                    await self.arrived.wait()
            except TimeoutError:
                return []
        if self._seen < len(flight._deltas):
            news = flight._deltas[self._seen :]
            self._seen += len(news)
            return news
        if flight.failure is not None:
            raise flight.failure
        return []

    @property
    def answer(self) -> Answer | None:
        """The whole answer, once all of it has been told."""
        return self._flight.answer if self._seen == len(self._flight._deltas) else None


def failed(error: Exception) -> ApiError:
    """What a client is told of a failure midway."""
    if isinstance(error, ApiError):
        return error
    return ApiError(500, "The server failed on this request.", code="internal_error", kind="server_error")
